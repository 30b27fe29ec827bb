// Formats numbers and creates elements of the page, so that no name of a run can become markup.
"use strict";

window.embedlabReport = {};

(function (report) {
  const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

  // Format a number as Python's format(value, ".<digits>g") does, because the command line prints numbers this way.
  function general(value, digits) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value < 0 ? "−∞" : "∞";
    if (value === 0) return "0";
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = Number(exponent);
    const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (power < -4 || power >= digits) {
      return `${short(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
    }
    return short(value.toFixed(Math.max(0, digits - 1 - power)));
  }

  // Format a model size or an amount of data with a unit, for example 410M or 1.4B.
  function amount(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const unit = UNITS.find(([size]) => value >= 0.9995 * size);
    if (!unit || value >= 1e15) return general(value, 3);
    return general(value / unit[0], 3).replace(/^1e\+03$/, "1000") + unit[1];
  }

  function percent(share) {
    return `${Math.round(100 * share)} %`;
  }

  function hours(value) {
    if (value === null || value === undefined) return "–";
    if (value < 1 / 60) return `${general(3600 * value, 3)} s`;
    if (value < 1) return `${general(60 * value, 3)} min`;
    return `${general(value, 3)} h`;
  }

  // Create an element with a class and children. Text never becomes markup.
  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function table(heads, rows) {
    const cell = (tag, [content, className]) => element(tag, className, content);
    const head = element("thead", "", element("tr", "", ...heads.map((one) => cell("th", one))));
    const body = element("tbody", "", ...rows.map((row) => element("tr", "", ...row.map((one) => cell("td", one)))));
    const scroll = element("div", "scroll", element("table", "", head, body));
    scroll.tabIndex = 0;
    return scroll;
  }

  function named(method, color) {
    const dot = element("span", "dot");
    dot.style.background = color;
    return element("span", "words", dot, method);
  }

  // Escape a text for plotly.js, which interprets some tags in texts.
  function plain(text) {
    return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  }

  Object.assign(report, { general, amount, percent, hours, element, table, named, plain });
})(window.embedlabReport);
