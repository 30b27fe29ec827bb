// Fills the page with the data of the report, and updates the recipe while the reader types.
"use strict";

(function (report) {
  const { amount, element, general, hours, named, percent, table } = report;
  const FEW = 10;
  const PAUSE = 150; // milliseconds without a key press before the recipe is computed again
  const data = JSON.parse(document.getElementById("data").textContent);
  const colors = Object.fromEntries(data.methods.map((method) => [method.name, method.color]));
  const question = document.getElementById("question");
  const answer = document.getElementById("answer");

  function summary() {
    const count = data.records.name.length;
    const left = data.records.left_out.of.filter((number) => data.records.left_out.values[number] !== null).length;
    const flops = data.records.flops.filter((value) => value !== null && value > 0);
    const least = flops.reduce((one, other) => Math.min(one, other), Infinity);
    const most = flops.reduce((one, other) => Math.max(one, other), 0);
    const words = [`${count} run${count === 1 ? "" : "s"} from ${data.source}`];
    if (data.methods.length > 1) words.push(`${data.methods.length} methods`);
    if (flops.length) words.push(`${general(least, 2)} to ${general(most, 2)} FLOPs`);
    if (left) words.push(`${left} left out of the fits`);
    document.getElementById("summary").textContent = `${words.join(", ")}.`;
  }

  function banner() {
    if (!data.banner.length) return;
    const place = document.getElementById("banner");
    place.append(...data.banner.map((line) => element("p", "warning", line)));
    place.hidden = false;
  }

  // ---- the recipe

  function number(text) {
    return text.trim() === "" ? null : Number(text.trim());
  }

  function asked() {
    const constraints = {};
    for (const name of Object.keys(data.constraints)) constraints[name] = number(question.elements[name].value);
    return [number(question.elements.budget.value) ?? NaN, constraints, question.elements.extrapolate.checked];
  }

  // An end of an interval that the runs do not limit is null or, for a coefficient, 0 or infinite.
  function bounds([low, high], digits) {
    const isLow = low !== null && Number.isFinite(low) && low !== 0;
    const isHigh = high !== null && Number.isFinite(high);
    if (isLow && isHigh) return `${general(low, digits)} to ${general(high, digits)}`;
    if (isLow) return `above ${general(low, digits)}`;
    return isHigh ? `below ${general(high, digits)}` : "not known from these runs";
  }

  function range([low, high]) {
    return `${general(low, 4)} to ${general(high, 4)}`;
  }

  function sentence(best) {
    const words = ["Train ", element("strong", "", best.backbone)];
    // A backbone without a name is named by its size already.
    if (!best.backbone.endsWith(" parameters")) words.push(` (${amount(best.parameters)})`);
    if (best.method !== data.unnamed) words.push(" with ", element("strong", "", best.method));
    words.push(" on ", element("strong", "", `${amount(best.tokens)} tokens`));
    if (best.pairs !== null) words.push(`, ${amount(best.pairs)} pairs`);
    if (best.learning_rate !== null) words.push(`, at a learning rate of ${general(best.learning_rate, 3)}`);
    if (best.hours !== null) words.push(`, for ${hours(best.hours)}`);
    words.push(`. Predicted loss ${general(best.loss, 4)} (80 % interval: ${range(best.interval_80)}).`);
    return element("p", "sentence", ...words);
  }

  function choices(found) {
    const alike = found.configurations.filter((one) => one.cannot_be_told_apart);
    const optional = [
      ["pairs", "pairs", amount], ["epochs", "epochs", (value) => general(value, 3)],
      ["learning rate", "learning_rate", (value) => general(value, 3)], ["time", "hours", hours],
      ["memory, GiB", "memory_bytes", (value) => (value === null ? "–" : general(value / 2 ** 30, 3))],
    ].filter(([, name]) => alike.some((one) => one[name] !== null));
    const heads = [
      "parameters N", "tokens", "predicted loss", "80 % interval", "95 % interval", "probability of being best",
      ...optional.map(([title]) => title),
    ];
    const rows = alike.map((one) => [
      [named(one.method, colors[one.method]), ""], [element("span", "words", one.backbone), ""],
      ...[
        amount(one.parameters), amount(one.tokens), general(one.loss, 4), range(one.interval_80),
        range(one.interval_95), percent(one.probability_best), ...optional.map(([, name, shown]) => shown(one[name])),
      ].map((cell) => [cell, "number"]),
    ]);
    const titles = [["method", ""], ["backbone", ""], ...heads.map((title) => [title, "number"])];
    const shown = table(titles, rows.slice(0, FEW));
    shown.querySelector("table").id = "choices";
    const chance = percent(data.recipe.indistinguishable);
    const told = alike.length === 1
      ? `Every other configuration has a lower loss than this configuration with a probability below ${chance}.`
      : `These ${alike.length} configurations cannot be told apart: the first has the lowest predicted loss, and ` +
        `each of the others has a lower loss than the first with a probability of at least ${chance}.`;
    const made = element("div", "", element("p", "note", told), shown);
    if (rows.length > FEW) {
      const more = element("button", "more", `Show all ${rows.length}`);
      more.type = "button";
      more.addEventListener("click", () => {
        const whole = table(titles, rows);
        whole.querySelector("table").id = "choices";
        shown.replaceWith(whole);
        more.remove();
      });
      made.append(more);
    }
    return made;
  }

  function shares(probability) {
    const made = element("div", "shares");
    for (const [method, share] of Object.entries(probability).sort((one, other) => other[1] - one[1])) {
      const bar = element("div", "bar");
      bar.style.background = colors[method];
      bar.style.width = `${100 * share}%`;
      made.append(element("span", "name", method), element("div", "", bar), element("span", "", percent(share)));
    }
    return made;
  }

  function show() {
    const [budget, constraints, extrapolate] = asked();
    try {
      const found = report.recipe(data.recipe, budget, constraints, extrapolate);
      const parts = [sentence(found.configurations[0])];
      if (found.measured !== null) {
        const kind = found.measured.is_recommended ? "note" : "warning";
        parts.push(element("p", kind, report.measuredWords(found.measured)));
      }
      if (found.extrapolation > 1) {
        parts.push(element("p", "warning", `The budget is ${general(found.extrapolation, 3)} times that of the largest run.`));
      }
      if (Object.keys(found.method_probability).length > 1) {
        parts.push(element("h3", "", "Probability that a method has the lowest loss"), shares(found.method_probability));
      }
      parts.push(choices(found));
      for (const [reason, count] of Object.entries(found.ruled_out)) {
        parts.push(element("p", "note", `Configurations ruled out by ${reason}: ${count}.`));
      }
      answer.replaceChildren(...parts);
    } catch (error) {
      answer.replaceChildren(element("p", "warning", error.message));
    }
  }

  function startRecipe() {
    if (data.recipe === null) {
      question.hidden = true;
      const reason = "There is no recipe, because no method has a law. The section “Laws” gives the reasons.";
      answer.append(element("p", "empty", reason));
      return;
    }
    report.prepared(data.recipe);
    const largest = Math.max(...data.recipe.methods.map((method) => method.largestFlops));
    const beyond = document.getElementById("extrapolate-label");
    beyond.textContent = `Allow budgets above ${general(data.recipe.farthest * largest, 2)} FLOPs`;
    const digit = 10 ** (Math.floor(Math.log10(largest)) - 1);
    // Rounded down, so that the first recipe is not for a budget beyond the runs.
    question.elements.budget.value = general(Math.floor(largest / digit) * digit, 2);
    for (const [name, value] of Object.entries(data.constraints)) {
      if (value === null) continue;
      question.elements[name].value = String(value);
      question.querySelector("details").open = true;
    }
    let waiting;
    question.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(show, PAUSE);
    });
    question.addEventListener("submit", (event) => { event.preventDefault(); show(); });
    show();
  }

  // ---- recipes that were trained

  function confirmations() {
    if (!data.confirmations.length) return;
    document.getElementById("confirmation").hidden = false;
    const heads = [
      "budget, FLOPs", "learning rate", "predicted loss", "80 % interval", "95 % interval", "measured loss",
      "difference", "fitted runs", "largest fitted run",
    ];
    const rows = data.confirmations.map((one) => [
      [named(one.method, colors[one.method]), ""], [element("span", "words", one.backbone), ""],
      ...[
        general(one.budget, 3), one.learning_rate === null ? "–" : general(one.learning_rate, 3), general(one.loss, 4),
        range(one.interval_80), range(one.interval_95), one.measured === null ? "–" : general(one.measured, 4),
        one.measured === null ? "–" : percent(one.measured / one.loss - 1), String(one.num_runs),
        `${general(one.largest_flops, 3)} FLOPs`,
      ].map((cell) => [cell, "number"]),
      [one.verdict, ""],
    ]);
    const titles = [["method", ""], ["backbone", ""], ...heads.map((title) => [title, "number"]), ["measured loss is", ""]];
    document.getElementById("confirmations").append(
      element("p", "note", "Each recipe is based only on runs with smaller budgets. It was stored before its run was " +
        "trained, and the run followed it unchanged."),
      table(titles, rows),
    );
  }

  // ---- laws

  function sub(name) {
    const greek = { alpha: "α", beta: "β", D_0: "D₀" };
    return greek[name] ?? name;
  }

  function formula(law) {
    const has = new Set(law.parameters.map((one) => one.name));
    const [alpha, beta] = ["α", has.has("beta") ? "β" : "α"];
    const letter = (name) => element("i", "", name);
    const power = (base, exponent) => [letter(base), element("sup", "", exponent)];
    const data = has.has("R") ? "D′" : "D";
    const terms = [];
    if (law.isProduct) terms.push([letter("A"), " / (", ...power("N", alpha), " ", ...power(data, beta), ")"]);
    else {
      if (has.has("A")) terms.push([letter("A"), " / ", ...power("N", alpha)]);
      const pretrained = has.has("D_0") ? ["(", letter("D₀"), " + ", ...power(data, beta), ")"] : power(data, beta);
      terms.push([letter("B"), " / ", ...pretrained]);
    }
    const sum = terms.flatMap((term, number) => (number ? [" + ", ...term] : term));
    const made = element("p", "formula", letter("L"), " = ", letter("E"), " + ");
    if (law.chance === null) made.append(...sum);
    else {
      made.append(`(${general(law.chance, 4)} − `, letter("E"), ") ", letter("h"), " / (1 + ", letter("h"), "), where ");
      made.append(letter("h"), " = ", ...sum);
    }
    if (has.has("R")) made.append(", where D′ = U + U R (1 − exp(−(D / U − 1) / R)), and U of the D tokens are unique");
    return made;
  }

  function describe(law) {
    const rows = law.parameters.map(({ name, value, interval, atBound }) => [
      [element("i", "", sub(name)), ""], [general(value, 4), "number"],
      [bounds(interval, 3), "number"],
      [atBound ? "at a bound: not determined by the runs" : "", ""],
    ]);
    const noted = rows.some(([, , , [text]]) => text);
    const heads = [["", ""], ["estimate", "number"], ["90 % interval", "number"], ...(noted ? [["", ""]] : [])];
    const off = law.heldOut.map(([, , error]) => `${general(100 * error, 3)} %`).join(" / ");
    const words = off
      ? law.heldOut.length === 1
        ? `Error on the largest budget level, when it is held out: ${off}.`
        : `Errors on the ${law.heldOut.map(([budgets]) => budgets).join(" / ")} largest budget levels, when they are ` +
          `held out: ${off}.`
      : "No budget level could be held out, so the error of the law is not known from these runs. The intervals " +
        "assume twice the usual error.";
    const tried = law.tried
      .filter(([, error]) => error !== null)
      .map(([name, error, weight]) => `${name} ${general(100 * error, 3)} % (weight ${general(weight, 2)})`);
    return element(
      "div", "law", element("h3", "", named(law.method, colors[law.method])), formula(law),
      table(heads, noted ? rows : rows.map((row) => row.slice(0, 3))),
      element("p", "note", `${law.name}, fitted to ${law.runs} runs, R² of log loss ${general(law.rSquared, 4)}. ` +
        `${law.startsInBasin} of ${law.starts} starting points led to this minimum. ${words}` +
        (tried.length > 1 ? ` Predictions are weighted means of these laws. Mean errors on held-out budget levels: ${tried.join("; ")}.` : "") +
        (law.growth && ` ${law.growth}`) + (law.caution && ` ${law.caution}`)),
    );
  }

  function laws() {
    const list = document.getElementById("laws-list");
    list.append(...data.laws.map(describe));
    for (const [method, reason] of Object.entries(data.refused)) {
      list.append(element("p", "", element("strong", "", method), " has no law. ", reason));
    }
    if (!data.methods.length) list.append(element("p", "empty", "All runs are left out, so there is nothing to fit a law to."));
  }

  summary();
  banner();
  startRecipe();
  confirmations();
  report.drawAll(data.figures, data.methods);
  laws();
  report.runs(data.records, data.methods);
  report.data = data;
})(window.embedlabReport);
