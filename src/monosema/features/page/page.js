// What is shown and what keys and clicks do. Text from the corpus is only ever given to textContent and append.
// "Row" is a latent's place in the arrays of data.js, place a row's place in the table.

(async () => {
  const header = JSON.parse(byId("header").textContent);
  let data;
  try {
    data = await openData(header, byId("data").textContent);
  } catch (error) {
    explainOldBrowser();
    throw error;
  }
  byId("data").remove();

  const ROW_HEIGHT = 34;
  const SYMBOLS = "· is a space, ↵ a line break, ⇥ a tab, ↵·12 a line break and 12 spaces";
  const MAX_CHIPS = 5;
  const { nRows, density, layer, sortKeys, strongestTexts, logits, windowGroups } = data;
  const splitName = header.split.replace("heldout", "held-out");
  const state = {
    order: Uint32Array.from(data.latent.keys()),
    key: "clarity",
    descending: true,
    found: data.search("", "anywhere"),
    selected: -1,
    full: false,
    breaks: false,
  };

  function reorder() {
    const key = sortKeys[state.key];
    const sign = state.descending ? -1 : 1;
    let rows = Array.from(data.latent.keys());
    const { rows: matching, exact } = state.found;
    if (matching) rows = rows.filter((row) => matching[row]);
    rows.sort((a, b) => sign * (key(a) - key(b)) || a - b);
    if (exact >= 0) rows = [exact, ...rows.filter((row) => row !== exact)];
    state.order = Uint32Array.from(rows);
    byId("found").textContent = matching
      ? `${count(rows.length)} of ${count(nRows)}${missingText()}`
      : `${count(nRows)} latents`;
    byId("scroller").scrollTop = 0;
    showRows();
  }

  /** Why the latent whose number was asked for is not here. */
  function missingText() {
    const { missing } = state.found;
    if (missing === null) return "";
    if (missing >= header.d_sae) return ` · there is no latent ${missing}`;
    return header.n_alive === nRows ? ` · latent ${missing} never fired` : ` · latent ${missing} is not on this page`;
  }

  // ---- text

  /** Text with white space that can be seen. Spaces stay real, so that lines wrap and copied text is what it was; on
      one line (no breaks), newlines are symbols only and long runs of spaces are a count. */
  function appendText(parent, text, breaks) {
    for (const part of text.match(/ {4,}|\s|\S+/gu) ?? []) {
      const symbol = header.whitespace[part[0]];
      if (symbol === undefined) {
        parent.append(part);
      } else if (part.length > 1 && !breaks) {
        const run = make("span", "ws run");
        run.dataset.symbol = `${symbol}${part.length}`;
        parent.append(run, make("wbr", ""));
      } else {
        for (const character of part) {
          const isBreak = character === "\n";
          const mark = make("span", isBreak ? "ws" : "ws over", isBreak && !breaks ? "" : character);
          mark.dataset.symbol = symbol;
          parent.append(mark);
          if (isBreak && !breaks) parent.append(make("wbr", ""));
        }
      }
    }
    return parent;
  }

  function chip(text, className = "") {
    const element = appendText(make("span", `chip ${className}`), text, false);
    if (/^\s+$/u.test(text)) element.dataset.tip = whitespaceInWords(text);
    return element;
  }

  const WORDS = { " ": ["space", "spaces"], "\n": ["line break", "line breaks"], "\t": ["tab", "tabs"] };

  /** "1 line break, 12 spaces" */
  function whitespaceInWords(text) {
    const runs = text.match(/(\s)\1*/gu) ?? [];
    return runs
      .map((run) => `${run.length} ${(WORDS[run[0]] ?? ["other white space", "other white space"])[run.length > 1 ? 1 : 0]}`)
      .join(", ");
  }

  // ---- the table

  const columns = [
    ["index", "Latent", ""],
    [
      "clarity",
      "Clarity",
      "share of its strongest contexts that have the same strongest token; less where it fires on more than 1 % of tokens",
    ],
    ["density", "Density", "share of the tokens on which it fires (bar: logarithmic)"],
    ["maximum", "Max", "largest activation"],
    ["mean", "Mean", "mean activation where it fires"],
    [null, "Strongest tokens", `texts at the maxima of its contexts; ${SYMBOLS}`],
    [null, header.n_logits ? "Top logits" : "", "tokens it promotes most"],
  ];

  function showColumns() {
    byId("columns").replaceChildren(
      ...columns.map(([key, label, tip]) => {
        const cell = make("div", "");
        cell.setAttribute("role", "columnheader");
        if (tip) cell.dataset.tip = tip;
        if (!key) {
          cell.textContent = label;
          return cell;
        }
        const button = sortButton(key, label, state, () => {
          showColumns();
          reorder();
          byId("columns").querySelector(`[data-key="${key}"]`).focus();
        });
        cell.setAttribute("aria-sort", sortDirection(key, state));
        return add(cell, button);
      }),
    );
  }

  function rowElement(place) {
    const row = state.order[place];
    const element = make("div", "row");
    element.id = `row-${data.latent[row]}`;
    element.setAttribute("role", "row");
    element.setAttribute("aria-rowindex", place + 2);
    element.setAttribute("aria-selected", row === state.selected);
    element.style.top = `${place * ROW_HEIGHT}px`;
    element.dataset.row = row;
    const meter = make("i", "");
    // six decades, from one token in a million to all
    meter.style.width = `${Math.max(4, 100 * (1 + Math.log10(density(row)) / 6))}%`;
    const dense = make("div", "cell density");
    add(dense, add(make("b", ""), meter), make("span", "", share(density(row))));
    const strongest = add(make("div", "cell tokens"), ...strongestTexts(row).map((text) => chip(text, "hot")));
    const top = make("div", "cell tokens");
    if (header.n_logits) top.append(...logits(row, "top").slice(0, MAX_CHIPS).map(({ text }) => chip(text)));
    const index = make("div", "cell index", data.latent[row]);
    if (layer(row)) index.append(make("small", "", layer(row).name));
    add(
      element,
      index,
      make("div", "cell", number(data.clarity[row])),
      dense,
      make("div", "cell", number(data.maximum[row])),
      make("div", "cell", number(data.mean[row])),
      strongest,
      top,
    );
    for (const cell of element.children) cell.setAttribute("role", "gridcell");
    return element;
  }

  /** Only the rows in sight exist. */
  function showRows() {
    const scroller = byId("scroller");
    const rows = byId("rows");
    const [first, last] = rowsInSight(scroller, ROW_HEIGHT, state.order.length);
    rows.style.height = `${state.order.length * ROW_HEIGHT}px`;
    byId("grid").setAttribute("aria-rowcount", state.order.length + 1);
    const elements = [];
    for (let place = first; place < last; place++) elements.push(rowElement(place));
    if (!state.order.length) elements.push(make("p", "nothing", "No latent matches. Only latents that fired are listed."));
    rows.replaceChildren(...elements);
    byId("columns").style.setProperty("--scrollbar", `${scroller.offsetWidth - scroller.clientWidth}px`);
    if (state.selected >= 0) byId("grid").setAttribute("aria-activedescendant", `row-${data.latent[state.selected]}`);
  }

  function reveal(place) {
    const scroller = byId("scroller");
    const top = place * ROW_HEIGHT;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    if (top + ROW_HEIGHT > scroller.scrollTop + scroller.clientHeight) {
      scroller.scrollTop = top + ROW_HEIGHT - scroller.clientHeight;
    }
  }

  function select(row, { scroll = true } = {}) {
    if (row < 0) return;
    state.selected = row;
    const place = state.order.indexOf(row);
    if (scroll && place >= 0) reveal(place);
    showRows();
    showDetail();
    byId("detail").scrollTop = 0;
    history.replaceState(null, "", `#${data.latent[row]}`);
  }

  function move(steps) {
    if (!state.order.length) return;
    const place = state.order.indexOf(state.selected);
    const next = place < 0 ? 0 : place + steps;
    select(state.order[Math.min(state.order.length - 1, Math.max(0, next))]);
  }

  // ---- one latent

  function showDetail() {
    const row = state.selected;
    const place = state.order.indexOf(row);
    const head = add(make("div", "bar"), make("h2", "", `Latent ${data.latent[row]}`));
    for (const [label, name, steps, off] of [
      ["‹", "Previous latent", -1, place <= 0],
      ["›", "Next latent", 1, place < 0 || place + 1 >= state.order.length],
    ]) {
      const button = make("button", steps < 0 ? "button push" : "button", label);
      button.type = "button";
      button.setAttribute("aria-label", name);
      button.disabled = off;
      button.addEventListener("click", () => move(steps));
      head.append(button);
    }
    byId("detail").setAttribute("aria-label", `Latent ${data.latent[row]}`);
    byId("detail").replaceChildren(
      head,
      ...(layer(row) ? [make("p", "hint layer", `${layer(row).name} · ${layer(row).sites}`)] : []),
      stats(row),
      add(make("div", "pair"), histogramCard(row), logitsCard(row)),
      contextsCard(row),
    );
  }

  function stats(row) {
    const list = make("dl", "stats");
    for (const [name, value, note] of [
      ["Clarity", number(data.clarity[row]), "agreement of its contexts, less if dense"],
      ["Density", share(density(row)), `${count(data.count[row])} of ${count(header.n_tokens)} tokens`],
      ["Maximum", number(data.maximum[row]), "largest activation"],
      ["Mean", number(data.mean[row]), "where it fires"],
    ]) {
      list.append(add(make("div", "card"), make("dt", "", name), make("dd", "", value), make("small", "", note)));
    }
    return list;
  }

  function svg(tag, attributes, text) {
    const element = document.createElementNS(byId("svg").namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function histogramCard(row) {
    const counts = Array.from(data.histogram.subarray(row * header.n_bins, (row + 1) * header.n_bins));
    while (counts.length > 1 && counts[counts.length - 1] === 0) counts.pop();
    const binWidth = data.bin_width[row];
    const [left, top, width, height] = [38, 8, 380, 270];
    const decades = Math.max(1, Math.ceil(Math.log10(Math.max(...counts) + 1)));
    const tall = (value) => (height * Math.log10(1 + value)) / Math.log10(1 + 10 ** decades);
    const picture = svg("svg", { viewBox: `0 0 ${left + width + 8} ${top + height + 22}`, class: "histogram", role: "img" });
    picture.setAttribute(
      "aria-label",
      `Histogram of ${count(data.count[row])} activations from 0 to ${number(counts.length * binWidth)}`,
    );
    for (let decade = 0; decade <= decades; decade++) {
      const y = top + height - tall(10 ** decade);
      picture.append(svg("line", { x1: left, x2: left + width, y1: y, y2: y }));
      const label = 10 ** decade >= 1e6 ? `1e${decade}` : count(10 ** decade);
      picture.append(svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, label));
    }
    picture.append(svg("line", { x1: left, x2: left + width, y1: top + height, y2: top + height }));
    const step = width / counts.length;
    counts.forEach((value, bin) => {
      const tip = `${number(bin * binWidth)} to ${number((bin + 1) * binWidth)}\n${count(value)} tokens`;
      const x = left + bin * step;
      const gap = Math.min(2, step / 5);
      if (value) {
        const bar = { x: x + gap / 2, y: top + height - tall(value), width: step - gap, height: tall(value), rx: 1.5, class: "fill" };
        picture.append(svg("rect", bar));
      }
      const hover = svg("rect", { x, y: top, width: step, height, class: "hover" });
      hover.dataset.tip = tip;
      picture.append(hover);
    });
    for (const part of [0, 0.5, 1]) {
      const label = number(part * counts.length * binWidth);
      const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
      picture.append(svg("text", { x: left + part * width, y: top + height + 16, "text-anchor": anchor }, label));
    }
    return add(make("div", "card"), make("h3", "", "Activations where it fires · tokens, logarithmic"), picture);
  }

  function logitsCard(row) {
    const card = add(make("div", "card"), make("h3", "", "Direct effect on logits"));
    if (!header.n_logits) return add(card, make("p", "hint", header.logits_note));
    card.append(make("p", "hint", header.logits_meaning));
    const ends = make("div", "ends");
    const effects = { up: logits(row, "top"), down: logits(row, "bottom") };
    const largest = Math.max(...[...effects.up, ...effects.down].map(({ value }) => Math.abs(value)), 1e-12);
    for (const [end, label] of [["up", "Promotes"], ["down", "Suppresses"]]) {
      const list = make("ol", end);
      list.setAttribute("aria-label", label);
      for (const { text, value } of effects[end]) {
        const item = make("li", "");
        item.style.setProperty("--share", `${(100 * Math.abs(value)) / largest}%`);
        const signed = `${value < 0 ? "−" : "+"}${number(Math.abs(value))}`;
        list.append(add(item, chip(text), make("span", "value", signed)));
      }
      ends.append(add(make("div", ""), make("span", "hint", label), list));
    }
    return add(card, ends);
  }

  function toggle(label, name) {
    const button = make("button", "button", label);
    button.type = "button";
    button.id = `toggle-${name}`;
    button.setAttribute("aria-pressed", state[name]);
    button.addEventListener("click", () => flip(name));
    return button;
  }

  function flip(name) {
    state[name] = !state[name];
    if (state.selected < 0) return;
    const focused = document.activeElement?.id;
    byId("detail").lastElementChild.replaceWith(contextsCard(state.selected));
    if (focused) byId(focused)?.focus();
  }

  function contextsCard(row) {
    const [from, to] = [data.window_from[row], data.window_from[row + 1]];
    const head = add(
      make("div", "bar"),
      make("h3", "", `Strongest contexts · ${to - from}, at most one per context window`),
      add(make("span", "push bar"), toggle("Full", "full"), toggle("Line breaks", "breaks")),
    );
    const list = make("ol", "contexts");
    const legend =
      `Under the activation, ${place(from)} is token ${tokenOf(from)} of context ${data.window_context[from]} of the ` +
      `${splitName} text. The maximum is underlined. In the text, ${SYMBOLS}.`;
    for (let w = from; w < to; w++) {
      const where = make("small", "", place(w));
      where.dataset.tip = `context ${data.window_context[w]} of the ${splitName} text, token ${tokenOf(w)} (counted from 0)`;
      const mark = add(make("div", "mark", number(data.window_maximum[w])), where);
      list.append(add(make("li", ""), mark, contextText(row, w)));
    }
    return add(make("div", "card"), head, make("p", "hint", legend), list);
  }

  function tokenOf(w) {
    return data.window_start[w] + data.window_peak[w];
  }

  function place(w) {
    return `${data.window_context[w]}:${tokenOf(w)}`;
  }

  function contextText(row, w) {
    const { groups, cutBefore, cutAfter } = windowGroups(w, state.full);
    const line = make("div", "text");
    line.dir = "auto";
    if (cutBefore) line.append(make("span", "cut", "…"));
    for (const group of groups) {
      const token = appendText(make("span", "tok"), group.text, state.breaks);
      if (group.share) {
        token.classList.add("on");
        token.style.setProperty("--a", group.share / header.share);
        // the maximum is known exactly, other values to one part in header.share of the latent's maximum
        const value = group.peak ? data.window_maximum[w] : (group.share / header.share) * data.maximum[row];
        const span = group.stop - group.start > 1 ? `, the largest of ${group.stop - group.start} tokens` : "";
        token.dataset.tip = `${number(value)}${span}\n${Math.round((100 * value) / data.maximum[row])} % of its maximum`;
      }
      if (group.peak) token.classList.add("peak");
      if (state.found.tokens?.[group.token]) token.classList.add("found");
      line.append(token);
    }
    if (cutAfter) line.append(make("span", "cut", "…"));
    return line;
  }

  // ---- events

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input, select, textarea");
    const inGrid = byId("grid").contains(event.target);
    const page = Math.max(1, Math.floor(byId("scroller").clientHeight / ROW_HEIGHT) - 1);
    const actions = typing
      ? {}
      : { "/": () => byId("query").focus(), j: () => move(1), k: () => move(-1), f: () => flip("full"), b: () => flip("breaks") };
    if (inGrid) {
      Object.assign(actions, {
        ArrowDown: () => move(1),
        ArrowUp: () => move(-1),
        PageDown: () => move(page),
        PageUp: () => move(-page),
        Home: () => move(-state.order.length),
        End: () => move(state.order.length),
      });
      if (event.target === byId("grid")) actions.Enter = () => byId("detail").focus();
    }
    if (event.target === byId("query")) {
      actions.ArrowDown = () => {
        byId("grid").focus();
        if (state.order.indexOf(state.selected) < 0) move(1);
      };
      actions.Escape = () => {
        byId("query").value = "";
        runSearch();
      };
    }
    if (event.target === byId("detail")) actions.Escape = () => byId("grid").focus();
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  let pending = 0;
  function runSearch() {
    clearTimeout(pending);
    state.found = data.search(byId("query").value, byId("scope").value);
    reorder();
    if (state.found.exact >= 0) select(state.found.exact);
    else if (state.selected >= 0) showDetail();
  }

  byId("query").addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(runSearch, 160);
  });
  byId("scope").addEventListener("change", runSearch);
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    runSearch();
    // a latent that is not here must not open another one
    if (state.order.length && state.found.missing === null) select(state.order[0]);
  });
  byId("rows").addEventListener("click", (event) => {
    const element = event.target.closest(".row");
    if (element) select(Number(element.dataset.row), { scroll: false });
  });
  redrawOnScroll(byId("scroller"), showRows);
  addEventListener("hashchange", () => select(data.latent.indexOf(Number(location.hash.slice(1)))));
  document.addEventListener("keydown", onKey);

  // ---- start

  byId("title").textContent = header.title;
  byId("subtitle").textContent =
    (header.title === header.site ? "" : `${header.site} · `) +
    `${count(header.n_alive)} of ${count(header.d_sae)} latents fired on ${count(header.n_tokens)} ${splitName} tokens`;
  byId("notes").append(...header.notes.map((note) => make("li", "hint", note)));
  byId("figures").append(
    ...header.figures.map(([name, value]) => add(make("div", ""), make("dt", "", name), make("dd", "", value))),
  );
  showColumns();
  reorder();
  const asked = data.latent.indexOf(Number(location.hash.slice(1) || NaN));
  select(asked >= 0 ? asked : state.order[0]);
  document.documentElement.dataset.ready = "true";
})();
