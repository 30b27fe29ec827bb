// Draws the figures with plotly.js in the colors of the page. The page draws its own legends, so that long names wrap.
"use strict";

(function (report) {
  const { element, plain } = report;
  const DASHES = { line: "solid", dots: "dot" };
  const NARROW = 600;
  const MARKS = new Set(["upright", "span"]);
  const GLYPHS = { circle: "●", square: "■", "triangle-up": "▲", x: "✕" };

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), quiet: of("--quiet"), rule: of("--rule"), paper: of("--paper") };
  }

  function translucent(hex, opacity) {
    const [red, green, blue] = [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
    return `rgba(${red},${green},${blue},${opacity})`;
  }

  function colorOf(series, methods, colors) {
    return series.color === null ? colors.quiet : methods[series.color].color;
  }

  function trace(series, methods, colors) {
    const color = colorOf(series, methods, colors);
    const common = { type: "scatter", name: plain(series.label), showlegend: false };
    if (series.kind === "band") {
      const back = (values) => [...values].reverse();
      return {
        ...common,
        x: [...series.x, ...back(series.x)],
        y: [...series.high, ...back(series.low)],
        mode: "lines",
        line: { width: 0 },
        fill: "toself",
        fillcolor: translucent(color, series.strength),
        hoverinfo: "skip",
      };
    }
    if (series.kind === "points") {
      return {
        ...common,
        x: series.x,
        y: series.y,
        mode: "markers",
        marker: { color: color, opacity: series.strength, symbol: series.symbol, size: series.symbol === "x" ? 8 : 6 },
        hovertext: series.texts.map(plain),
        hovertemplate: "%{hovertext}<br>(%{x:.3s}, %{y:.4g})<extra></extra>",
      };
    }
    return {
      ...common,
      x: series.x,
      y: series.y,
      mode: "lines",
      line: { color: color, width: 2, dash: DASHES[series.kind] },
      opacity: series.strength,
      hovertemplate: `${plain(series.label)}<br>(%{x:.3s}, %{y:.4g})<extra></extra>`,
    };
  }

  // Return the shapes of vertical lines and spans, which have no coordinate on the y axis.
  function marks(figure, methods, colors) {
    const shapes = [];
    for (const series of figure.series.filter((one) => one.kind === "upright")) {
      const color = colorOf(series, methods, colors);
      const [x] = series.x;
      const line = { color, width: 1.5, dash: "dot" };
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line, name: series.label });
    }
    for (const series of figure.series.filter((one) => one.kind === "span")) {
      const [[x], [y], [low], [high]] = [series.x, series.y, series.low, series.high];
      const whole = { type: "line", xref: "x", yref: "paper", y0: y, y1: y, name: series.label };
      shapes.push({ ...whole, x0: low, x1: x, line: { color: methods[series.color].color, width: 5 } });
      shapes.push({ ...whole, x0: x, x1: high, line: { color: methods[series.above].color, width: 5 } });
      shapes.push({ ...whole, x0: x, x1: x, y0: y - 0.025, y1: y + 0.025, line: { color: colors.ink, width: 3 } });
    }
    return shapes;
  }

  function axis(given, values, colors, narrow) {
    const numbers = values.filter((value) => value > 0);
    // On a short axis, powers of ten would give at most one tick.
    const isShort = given.log && Math.max(...numbers) < 30 * Math.min(...numbers);
    return {
      title: { text: plain(given.title), font: { size: 13, color: colors.quiet }, standoff: 8 },
      type: given.log ? "log" : "linear",
      exponentformat: isShort ? "SI" : "power",
      nticks: narrow || isShort ? 6 : 10,
      gridcolor: colors.rule,
      linecolor: colors.rule,
      zeroline: false,
      automargin: true,
      tickfont: { size: 12, color: colors.quiet },
    };
  }

  function layout(figure, methods, width) {
    const colors = theme();
    const narrow = width < NARROW;
    return {
      font: { family: getComputedStyle(document.body).fontFamily, color: colors.ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 8, t: 8, b: 44 },
      hovermode: "closest",
      hoverlabel: { bgcolor: colors.paper, bordercolor: colors.rule, font: { color: colors.ink, size: 13 } },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // on touch screens, dragging scrolls
      xaxis: axis(figure.x, figure.series.flatMap((one) => one.x), colors, narrow),
      yaxis: {
        ...axis(figure.y, figure.series.filter((one) => one.kind !== "span").flatMap((one) => one.y), colors, narrow),
        ...(figure.yLimits && { range: figure.y.log ? figure.yLimits.map(Math.log10) : figure.yLimits }),
      },
      shapes: marks(figure, methods, colors),
    };
  }

  function legend(figure, methods, plot, traced) {
    const ofMethods = figure.series.filter((one) => one.color !== null);
    const ofNone = figure.series.filter((one) => one.color === null);
    const labels = [...new Set([...ofMethods, ...ofNone].map((one) => one.label))];
    if (labels.length < 2) return null;
    const entries = labels.map((label) => {
      const own = figure.series.filter((one) => one.label === label);
      const shown = own.find((one) => one.kind === "line") ?? own[own.length - 1];
      const color = colorOf(shown, methods, theme());
      const swatch = element("span", "swatch");
      if (shown.kind === "upright") {
        swatch.className = "swatch upright";
        swatch.style.borderColor = color;
      } else if (shown.kind === "span") {
        swatch.style.background = `linear-gradient(90deg, ${color} 50%, ${methods[shown.above].color} 50%)`;
      } else if (shown.kind === "points") {
        swatch.className = "glyph";
        swatch.textContent = GLYPHS[shown.symbol];
        swatch.style.color = translucent(color, shown.strength);
      } else {
        swatch.style.background = shown.color === null ? color : translucent(color, shown.strength);
      }
      const button = element("button", "", swatch, label);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const visible = button.getAttribute("aria-pressed") === "false";
        button.setAttribute("aria-pressed", String(visible));
        const places = traced.flatMap((one, place) => (one.label === label ? [place] : []));
        if (places.length) Plotly.restyle(plot, { visible }, places);
        const shapes = plot.layout.shapes.map((one) => (one.name === label ? { ...one, visible } : one));
        Plotly.relayout(plot, { shapes });
      });
      return button;
    });
    return element("div", "legend", ...entries);
  }

  function draw(figure, methods, wide) {
    const made = element("figure", wide ? "wide" : "", element("h3", "", figure.title));
    made.id = `figure-${figure.key}`;
    if (figure.empty !== null) {
      made.append(element("p", "empty", figure.empty));
      return { made, redraw: () => {} };
    }
    const plot = element("div", "plot");
    const traced = figure.series.filter((one) => !MARKS.has(one.kind));
    made.append(...[legend(figure, methods, plot, traced), plot].filter(Boolean));
    made.append(element("figcaption", "note", figure.note));
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    options.displayModeBar = matchMedia("(hover: hover)").matches ? "hover" : false;
    const redraw = () => {
      const traces = traced.map((one) => trace(one, methods, theme()));
      return Plotly.react(plot, traces, layout(figure, methods, plot.clientWidth), options);
    };
    return { made, redraw };
  }

  // Draw each figure in its section, and draw all figures again when the reader switches between light and dark colors.
  function drawAll(figures, methods) {
    const drawn = [];
    for (const figure of figures) {
      const section = document.getElementById(figure.section);
      const alone = figures.filter((one) => one.section === figure.section).length === 1;
      const { made, redraw } = draw(figure, methods, alone);
      section.querySelector(".figures").append(made);
      drawn.push(redraw);
    }
    drawn.forEach((redraw) => redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((redraw) => redraw()));
  }

  Object.assign(report, { drawAll });
})(window.embedlabReport);
