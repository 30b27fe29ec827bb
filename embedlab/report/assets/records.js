// Shows the table of runs with filters, sorting and pages of 50 runs, so that the page stays fast with 10,000 runs.
"use strict";

(function (report) {
  const { amount, element, general, hours, named } = report;
  const ROWS = 50;
  const COLUMNS = [
    { key: "name", title: "run", text: true },
    { key: "method", title: "method", text: true },
    { key: "backbone", title: "backbone", text: true },
    { key: "parameters", title: "parameters N", shown: amount },
    { key: "tokens", title: "tokens", shown: amount },
    { key: "flops", title: "FLOPs", shown: (value) => general(value, 3) },
    { key: "loss", title: "loss", shown: (value) => general(value, 4) },
    { key: "predicted", title: "predicted loss", shown: (value) => general(value, 4) },
    { key: "learning_rate", title: "learning rate", shown: (value) => general(value, 3) },
    { key: "pairs", title: "pairs", shown: amount },
    { key: "seconds", title: "time", shown: (value) => hours(value === null ? null : value / 3600) },
    { key: "memory_bytes", title: "memory, GiB", shown: (value) => (value === null ? "–" : general(value / 2 ** 30, 3)) },
    { key: "left_out", title: "reason for leaving out", text: true },
  ];

  function unpacked(column) {
    return Array.isArray(column) ? column : column.of.map((number) => column.values[number]);
  }

  function runs(columns, methods) {
    const data = Object.fromEntries(COLUMNS.map(({ key }) => [key, unpacked(columns[key])]));
    const colors = Object.fromEntries(methods.map((method) => [method.name, method.color]));
    const told = COLUMNS.filter(({ key }) => key === "name" || data[key].some((value) => value !== null));
    const filters = document.getElementById("filters");
    const body = document.querySelector("#records-table tbody");
    const buttons = { previous: document.getElementById("previous"), next: document.getElementById("next") };
    const searched = data.name.map((name, row) =>
      [name, data.backbone[row], data.left_out[row] ?? ""].join("\n").toLowerCase(),
    );
    const state = { order: null, descending: false, page: 0, rows: [] };

    function fill(name, values) {
      const options = [...new Set(values)].sort().map((value) => new Option(value, value));
      filters.elements[name].append(new Option("all", ""), ...options);
    }

    function select() {
      const of = (name) => filters.elements[name].value;
      const text = of("text").trim().toLowerCase();
      const [method, backbone, fitted] = ["method", "backbone", "fitted"].map(of);
      state.rows = data.name.map((_, row) => row).filter(
        (row) =>
          (!text || searched[row].includes(text)) &&
          (!method || data.method[row] === method) &&
          (!backbone || data.backbone[row] === backbone) &&
          (!fitted || (data.left_out[row] === null) === (fitted === "yes")),
      );
      if (state.order !== null) {
        const values = data[state.order];
        const sign = state.descending ? -1 : 1;
        const compare = (one, other) => (typeof one === "string" ? one.localeCompare(other) : one - other);
        state.rows.sort((one, other) => {
          // Runs without a value come last in both orders.
          const missing = (values[one] === null) - (values[other] === null);
          return missing || (values[one] === null ? 0 : sign * compare(values[one], values[other]));
        });
      }
      state.page = 0;
      show();
    }

    function cell({ key, shown, text }, row) {
      const value = data[key][row];
      if (!text) return element("td", "number", shown(value));
      if (key === "method") return element("td", "", named(value, colors[value] ?? "transparent"));
      return element("td", "", element("span", "words", value ?? ""));
    }

    function show() {
      const pages = Math.max(1, Math.ceil(state.rows.length / ROWS));
      const first = state.page * ROWS;
      const rows = state.rows.slice(first, first + ROWS);
      body.replaceChildren(
        ...rows.map((row) => element("tr", data.left_out[row] === null ? "" : "left-out", ...told.map((one) => cell(one, row)))),
      );
      const left = state.rows.filter((row) => data.left_out[row] !== null).length;
      document.getElementById("records-count").textContent =
        `${state.rows.length} of ${data.name.length} runs` + (left ? `, ${left} of them left out of the fits` : "");
      document.getElementById("place").textContent = `Page ${state.page + 1} of ${pages}`;
      buttons.previous.disabled = state.page === 0;
      buttons.next.disabled = state.page + 1 >= pages;
    }

    function sortBy(key) {
      state.descending = state.order === key && !state.descending;
      state.order = key;
      for (const head of document.querySelectorAll("#records-table th")) {
        const own = head.dataset.key === key;
        head.setAttribute("aria-sort", own ? (state.descending ? "descending" : "ascending") : "none");
        head.querySelector(".arrow").textContent = own ? (state.descending ? " ↓" : " ↑") : "";
      }
      select();
    }

    const heads = told.map(({ key, title, text }) => {
      const button = element("button", "", title, element("span", "arrow"));
      button.type = "button";
      button.addEventListener("click", () => sortBy(key));
      const head = element("th", text ? "" : "number", button);
      head.dataset.key = key;
      head.setAttribute("aria-sort", "none");
      return head;
    });
    document.querySelector("#records-table thead").append(element("tr", "", ...heads));
    fill("method", data.method);
    fill("backbone", data.backbone);
    filters.addEventListener("input", select);
    filters.addEventListener("submit", (event) => event.preventDefault());
    buttons.previous.addEventListener("click", () => { state.page -= 1; show(); });
    buttons.next.addEventListener("click", () => { state.page += 1; show(); });
    select();
  }

  Object.assign(report, { runs });
})(window.embedlabReport);
