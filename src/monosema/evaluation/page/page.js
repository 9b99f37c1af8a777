// Sorting the table of figures, and the table of latents, of which only the rows in sight exist. All else is static.

(async () => {
  // ---- tips and what belongs together

  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  for (const element of document.querySelectorAll("[title]")) {
    element.dataset.tip = element.title;
    element.setAttribute("aria-description", element.title);
    element.removeAttribute("title");
  }
  document.addEventListener("mouseover", (event) => {
    const dictionary = event.target.closest?.("[data-dictionary]")?.dataset.dictionary;
    for (const element of document.querySelectorAll("[data-dictionary]")) {
      element.classList.toggle("on", element.dataset.dictionary === dictionary);
    }
  });

  /** Those without a value last, whatever the direction. */
  function compared(a, b, descending) {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return descending ? b - a : a - b;
  }

  // ---- figures

  const figures = byId("figures");
  const headings = [...figures.querySelectorAll("th[data-key]")];
  const sort = { key: null, descending: true };

  function sortFigures() {
    const column = headings.findIndex((heading) => heading.dataset.key === sort.key);
    const sign = sort.descending ? -1 : 1;
    const text = (row) => row.cells[column].dataset.value;
    const rows = [...figures.tBodies[0].rows].sort((a, b) =>
      sort.key === "name"
        ? sign * text(a).localeCompare(text(b), "en", { numeric: true })
        : compared(Number(text(a) ?? NaN), Number(text(b) ?? NaN), sort.descending),
    );
    figures.tBodies[0].append(...rows);
    for (const heading of headings) heading.setAttribute("aria-sort", sortDirection(heading.dataset.key, sort));
  }

  for (const heading of headings) {
    const button = sortButton(heading.dataset.key, heading.textContent, sort, sortFigures);
    heading.setAttribute("aria-sort", "none");
    heading.replaceChildren(button);
  }

  // ---- latents

  const header = JSON.parse(byId("header").textContent);
  let arrays;
  try {
    arrays = await readArrays(byId("data").textContent, header.arrays);
  } catch (error) {
    explainOldBrowser();
    throw error;
  }
  byId("data").remove();

  const ROW_HEIGHT = 30;
  const COLUMNS = [["index", "Latent", "its number"], ...header.columns];
  const state = { dictionary: 0, key: "index", descending: false, order: [] };

  const column = (key) => arrays[`${state.dictionary}/${key}`];

  /** The numbers asked for, as a test; null where the query is none. */
  function asked(query) {
    const ranges = query.split(/[\s,]+/).filter((part) => part !== "").map((part) => /^#?(\d+)(?:[-–](\d+))?$/.exec(part));
    if (ranges.includes(null)) return null;
    const limits = ranges.map(([, from, to]) => [Number(from), Number(to ?? from)]);
    return (row) => !limits.length || limits.some(([from, to]) => from <= row && row <= to);
  }

  function reorder() {
    const { n_latents: nLatents, name } = header.dictionaries[state.dictionary];
    const isAsked = asked(byId("query").value);
    const activity = byId("activity").value;
    state.order = [];
    state.message = "";
    if (nLatents === null) {
      state.message = `The table of latents of ${name} was not saved: reports read from JSON have none. Evaluate it anew to see it.`;
    } else if (isAsked === null) {
      state.message = "Ask for numbers and ranges, such as 7, 100-120.";
    } else {
      const counts = column("density");
      for (let row = 0; row < nLatents; row++) {
        if (isAsked(row) && (activity === "all" || (activity === "alive") === counts[row] > 0)) state.order.push(row);
      }
      if (!state.order.length) state.message = "No latent matches.";
      if (state.key === "index") {
        if (state.descending) state.order.reverse();
      } else {
        const values = column(state.key);
        state.order.sort((a, b) => compared(values[a], values[b], state.descending) || a - b);
      }
    }
    byId("found").textContent = nLatents === null ? "" : `${count(state.order.length)} of ${count(nLatents)}`;
    byId("scroller").scrollTop = 0;
    showColumns();
    showRows();
  }

  function showColumns() {
    const cells = COLUMNS.map(([key, label, tip]) => {
      const cell = make("div", "");
      cell.setAttribute("role", "columnheader");
      cell.setAttribute("aria-sort", sortDirection(key, state));
      const button = sortButton(key, label, state, () => {
        reorder();
        byId("columns").querySelector(`[data-key="${key}"]`).focus();
      });
      button.dataset.tip = tip;
      button.setAttribute("aria-description", tip);
      return add(cell, button);
    });
    byId("columns").replaceChildren(...cells);
  }

  function text(key, row) {
    if (key === "index") return String(row); // as it can be asked for
    const value = column(key)[row];
    if (Number.isNaN(value)) return "—";
    return key === "density" ? share(value / header.dictionaries[state.dictionary].n_tokens) : number(value);
  }

  function rowElement(place) {
    const row = state.order[place];
    const element = make("div", "row");
    element.setAttribute("role", "row");
    element.setAttribute("aria-rowindex", place + 2);
    element.style.top = `${place * ROW_HEIGHT}px`;
    for (const [key] of COLUMNS) {
      const cell = make("div", "", text(key, row));
      cell.setAttribute("role", key === "index" ? "rowheader" : "cell");
      if (cell.textContent === "—") cell.dataset.tip = column("density")[row] ? "not defined for this latent" : "it never fired, or this is not defined for it";
      element.append(cell);
    }
    return element;
  }

  function showRows() {
    const [first, last] = rowsInSight(byId("scroller"), ROW_HEIGHT, state.order.length);
    const elements = [];
    for (let place = first; place < last; place++) elements.push(rowElement(place));
    if (state.message) elements.push(make("p", "nothing", state.message));
    byId("rows").style.height = state.message ? "auto" : `${state.order.length * ROW_HEIGHT}px`;
    byId("grid").setAttribute("aria-rowcount", state.order.length + 1);
    byId("rows").replaceChildren(...elements);
  }

  byId("dictionary").append(
    ...header.dictionaries.map(({ name, n_latents: nLatents }, place) => {
      const option = make("option", "", nLatents === null ? `${name} (not saved)` : name);
      option.value = place;
      return option;
    }),
  );
  byId("dictionary").addEventListener("change", () => {
    state.dictionary = Number(byId("dictionary").value);
    reorder();
  });
  byId("query").addEventListener("input", reorder);
  byId("activity").addEventListener("change", reorder);
  byId("choice").addEventListener("submit", (event) => event.preventDefault());
  redrawOnScroll(byId("scroller"), showRows);
  state.dictionary = Math.max(0, header.dictionaries.findIndex(({ n_latents: nLatents }) => nLatents !== null));
  byId("dictionary").value = state.dictionary;
  reorder();
  document.documentElement.dataset.ready = "true";
})();
