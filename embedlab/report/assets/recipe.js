// Computes the recipe for a budget like embedlab/scaling/recipe.py, with the same numbers and the same error messages.
"use strict";

(function (report) {
  const GIB = 2 ** 30;

  function decoded(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Float64Array(bytes.buffer);
  }

  function prepared(given) {
    for (const method of given.methods) {
      method.drawsOfLaw = decoded(method.drawsOfLaw);
      method.drawsOfRuns = method.drawsOfRuns.map(decoded);
      for (const part of method.parts) {
        for (const name of ["estimate", "worths", "slopes"]) part[name] = decoded(part[name]);
        part.place = Object.fromEntries(part.names.map((name, number) => [name, number]));
      }
    }
    return given;
  }

  // Return how many unique tokens have the value of repeated tokens (Muennighoff et al. 2023, arXiv:2305.16264, eq. 5).
  function worth(tokens, unique, epochs) {
    return unique + unique * epochs * (1 - Math.exp(-(tokens / unique - 1) / epochs));
  }

  // Return the log of the loss that a part of a method's law predicts for a backbone, given by its place in the suite.
  function logLoss(part, place, size, tokens, uniqueTokens) {
    const of = (name) => (name in part.place ? part.estimate[part.place[name]] : undefined);
    const [E, A, B, alpha, D_0, R] = ["E", "A", "B", "alpha", "D_0", "R"].map(of);
    const beta = of("beta") ?? alpha;
    let data = tokens;
    if (R !== undefined && uniqueTokens !== null) data = worth(data, Math.min(data, uniqueTokens), R);
    let above = 0;
    if (part.isProduct) {
      above = A * Math.exp(-alpha * Math.log(size) - beta * Math.log(data));
    } else {
      if (A !== undefined) above = A * Math.exp(-alpha * Math.log(size));
      above += B / ((D_0 ?? 0) + Math.exp(beta * Math.log(data)));
    }
    const loss = E + (part.chance === null ? above : ((part.chance - E) * above) / (1 + above));
    return Math.log(loss) + part.worths[place] + part.slopes[place] * Math.log(tokens);
  }

  function requirePositive(name, value) {
    if (value !== null && !(Number.isFinite(value) && value > 0)) {
      throw new Error(`${name} is ${value}. Expected a finite number above 0. Leave ${name} out for no limit.`);
    }
  }

  function learningRate(given, method, c, budget) {
    if (method.rates[c] === null) return null;
    const [flops, losses, rates] = given.rates[method.rates[c]];
    let best = 0;
    const distance = flops.map((value) => Math.abs(Math.log(value) - Math.log(budget)));
    for (let row = 1; row < flops.length; row++) {
      const nearer = distance[row] - distance[best];
      if (nearer < 0 || (nearer === 0 && losses[row] < losses[best])) best = row;
    }
    return rates[best];
  }

  function configuration(given, method, c, budget, constraints) {
    const [backbone, parameters] = given.suite[c];
    const flops = Math.max(0, budget - 2 * parameters * (constraints.serve_tokens ?? 0));
    const tokens = flops / method.price[c];
    const pairs = given.tokensPerPair !== null && tokens > 0 ? tokens / given.tokensPerPair : null;
    return {
      method: method.name,
      backbone,
      parameters,
      tokens,
      flops,
      learning_rate: learningRate(given, method, c, budget),
      pairs,
      epochs: pairs === null || constraints.unique_pairs === null ? null : pairs / constraints.unique_pairs,
      hours: method.speed[c] === null ? null : flops / method.speed[c] / 3600,
      memory_bytes: method.memory[c],
    };
  }

  // Return the reason that rules a configuration out, or null if it meets all constraints.
  function ruledOutBy(given, method, one, constraints) {
    if (one.flops <= 0) return "serve_tokens (serving alone costs the whole budget)";
    const ratio = one.tokens / one.parameters;
    if (!(method.ratio[0] / given.farthest <= ratio && ratio <= method.ratio[1] * given.farthest)) {
      return `the limit on tokens per parameter (up to ${report.general(given.farthest, 6)} times beyond the runs)`;
    }
    if (constraints.max_parameters !== null && one.parameters > constraints.max_parameters) return "max_parameters";
    if (constraints.max_memory !== null) {
      if (one.memory_bytes === null) return "max_memory (no run of the method on the backbone states its memory)";
      if (one.memory_bytes > constraints.max_memory * GIB) return "max_memory";
    }
    if (constraints.hours !== null) {
      if (one.hours === null) return "hours (no run of the method states its speed)";
      if (one.hours > constraints.hours) return "hours";
    }
    if (one.epochs !== null && one.epochs > given.mostEpochs && !method.knowsRepetition) {
      const most = report.general(given.mostEpochs, 6);
      return `unique_pairs (more than ${most} epochs, whose effect no run of the method shows)`;
    }
    return null;
  }

  // Return a quantile of sorted values as numpy.quantile does with the method "weibull".
  function quantile(sorted, share) {
    const at = Math.min(Math.max(share * (sorted.length + 1) - 1, 0), sorted.length - 1);
    const below = Math.floor(at);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
  }

  function interval(sorted, level) {
    return [(1 - level) / 2, (1 + level) / 2].map((share) => Math.exp(quantile(sorted, share)));
  }

  function least(values, start, count) {
    let best = 0;
    for (let c = 1; c < count; c++) if (values[start + c] < values[start + best]) best = c;
    return best;
  }

  function ranked(given, possible, uniqueTokens) {
    const count = possible.length;
    const replicates = given.methods[0].drawsOfLaw.length;
    const estimate = new Float64Array(count);
    const drawn = new Float64Array(replicates * count);
    const placeOf = Object.fromEntries(given.suite.map(([backbone], place) => [backbone, place]));
    let start = 0;
    for (const method of given.methods) {
      const own = possible.filter((one) => one.method === method.name);
      if (!own.length) continue;
      for (const one of own) {
        const place = placeOf[one.backbone];
        for (const part of method.parts) {
          estimate[start] += part.share * logLoss(part, place, one.parameters, one.tokens, uniqueTokens);
        }
        const decades = Math.max(Math.log10((one.tokens * method.price[place]) / method.largestFlops), 0);
        for (let r = 0; r < replicates; r++) {
          const ofLaw = method.perDecade * decades * method.drawsOfLaw[r];
          drawn[r * count + start] = estimate[start] + ofLaw + method.noise * method.drawsOfRuns[place][r];
        }
        start += 1;
      }
    }
    const best = least(estimate, 0, count);
    const wins = new Float64Array(count);
    const better = new Float64Array(count);
    for (let r = 0; r < replicates; r++) {
      wins[least(drawn, r * count, count)] += 1;
      for (let c = 0; c < count; c++) better[c] += drawn[r * count + c] < drawn[r * count + best];
    }
    const column = new Float64Array(replicates);
    possible.forEach((one, c) => {
      for (let r = 0; r < replicates; r++) column[r] = drawn[r * count + c];
      column.sort();
      Object.assign(one, {
        loss: Math.exp(estimate[c]),
        interval_80: interval(column, 0.8),
        interval_95: interval(column, 0.95),
        probability_best: wins[c] / replicates,
        cannot_be_told_apart: c === best || better[c] / replicates >= given.indistinguishable,
      });
    });
    const probability = Object.fromEntries(given.methods.map((method) => [method.name, 0]));
    for (const one of possible) probability[one.method] += one.probability_best;
    return [[...possible].sort((one, other) => one.loss - other.loss), probability];
  }

  // Return the best run at about the costs of the possible configurations, or null if there is none.
  function measuredBest(given, ranked) {
    const first = ranked[0];
    const near = [];
    for (const method of given.methods) {
      const costs = new Map(ranked.filter((one) => one.method === method.name).map((one) => [one.backbone, one.flops]));
      for (const [place, flops, loss] of method.runs) {
        const backbone = given.suite[place][0];
        if (costs.get(backbone) && Math.abs(Math.log(flops) - Math.log(costs.get(backbone))) <= 0.5 * Math.LN2) {
          const isRecommended = method.name === first.method && backbone === first.backbone;
          near.push({ method: method.name, backbone, flops, loss, isRecommended, noise: method.noise });
        }
      }
    }
    if (!near.length) return null;
    const { isRecommended, noise, ...run } = near.reduce((one, other) => (other.loss < one.loss ? other : one));
    const own = near.filter((one) => one.isRecommended);
    return {
      ...run,
      num_runs: near.length,
      is_recommended: isRecommended,
      recommended_loss: own.length ? Math.min(...own.map((one) => one.loss)) : null,
      noise: Math.hypot(noise, own.length ? own[0].noise : noise),
    };
  }

  // Say whether the runs agree with the recommendation, and if not, why they do not.
  function measuredWords(best) {
    const share = (value) => `${(100 * value).toFixed(2)}%`;
    const of = `of ${best.num_runs} ${best.num_runs > 1 ? "runs" : "run"} at about this budget`;
    const at = `${report.general(best.loss, 4)} at ${report.general(best.flops, 3)} FLOPs`;
    if (best.is_recommended) return `The runs agree: ${of}, one of this configuration has the lowest loss (${at}).`;
    const text = `The runs differ: ${of}, one of ${best.backbone} with ${best.method} has the lowest loss (${at})`;
    if (best.recommended_loss === null) return `${text}. The recommended configuration was not trained at this budget.`;
    const off = Math.log(best.recommended_loss / best.loss);
    const known = `${text}, and the recommended configuration has ${report.general(best.recommended_loss, 4)}.`;
    return off <= 2 * best.noise
      ? `${known} The difference of ${share(off)} is within the noise of two runs (${share(best.noise)}).`
      : `${known} The difference of ${share(off)} is more than the noise of two runs (${share(best.noise)}), so the ` +
          "laws miss something here: at this budget, the run is the safer choice.";
  }

  // Return the recipe for a budget. If there is no recipe, throw an Error with the reason.
  function recipe(given, budget, constraints, extrapolate) {
    const shown = (value) => report.general(value, 6);
    for (const [name, value] of Object.entries(constraints)) requirePositive(name, value);
    if (!(Number.isFinite(budget) && budget > 0)) {
      throw new Error(`The budget is ${budget} FLOPs. Expected a finite number above 0.`);
    }
    const largest = Math.max(...given.methods.map((method) => method.largestFlops));
    if (budget > given.farthest * largest && !extrapolate) {
      throw new Error(
        `The budget of ${shown(budget)} FLOPs is ${report.general(budget / largest, 3)} times that of the largest run ` +
          `(${report.general(largest, 3)} FLOPs), and laws are trusted up to ${shown(given.farthest)} times. Train ` +
          "larger runs, or tick the box.",
      );
    }
    if (constraints.unique_pairs !== null && given.tokensPerPair === null) {
      throw new Error("unique_pairs is set, but no run states how many pairs it saw. Leave unique_pairs out.");
    }
    const uniqueTokens = constraints.unique_pairs === null ? null : constraints.unique_pairs * given.tokensPerPair;
    const ruledOut = new Map();
    const possible = [];
    for (const method of given.methods) {
      for (let c = 0; c < given.suite.length; c++) {
        const one = configuration(given, method, c, budget, constraints);
        const reason = ruledOutBy(given, method, one, constraints);
        if (reason === null) possible.push(one);
        else ruledOut.set(reason, (ruledOut.get(reason) ?? 0) + 1);
      }
    }
    if (!possible.length) {
      const total = given.methods.length * given.suite.length;
      const most = [...ruledOut].reduce((one, other) => (other[1] > one[1] ? other : one))[0];
      const reasons = [...ruledOut].map(([reason, count]) => `${reason} rules out ${count} of ${total}`).join("; ");
      throw new Error(
        `No configuration meets the constraints at a budget of ${shown(budget)} FLOPs: ${reasons}. Relax ${most}, or ` +
          "change the budget.",
      );
    }
    const [configurations, methodProbability] = ranked(given, possible, uniqueTokens);
    return {
      budget,
      configurations,
      method_probability: methodProbability,
      extrapolation: budget / largest,
      ruled_out: Object.fromEntries(ruledOut),
      measured: measuredBest(given, configurations),
    };
  }

  Object.assign(report, { prepared, recipe, measuredWords });
})(window.embedlabReport);
