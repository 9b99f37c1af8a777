"use strict";
// One page, no dependencies. Everything shown comes from the JSON header and one deflated block of arrays.
// Text from the corpus is only ever given to textContent. "Row" below is a latent's place in the arrays.

(async () => {
  const byId = (id) => document.getElementById(id);
  const header = JSON.parse(byId("header").textContent);
  let data;
  try {
    data = await readArrays(byId("data").textContent, header.arrays);
  } catch (error) {
    const message = make("p", "message", "This browser cannot unpack the page's data; use a version from 2023 or later.");
    document.body.replaceChildren(message);
    throw error;
  }
  byId("data").remove();

  const ROW_HEIGHT = 34;
  const SHORT = { before: 10, after: 5 };
  const MAX_CHIPS = 5;
  const nRows = data.latent.length;
  const state = {
    order: Uint32Array.from(data.latent.keys()),
    key: "density",
    descending: true,
    matches: null, // Uint8Array per row, or null where there is no search
    foundTokens: null, // Uint8Array per pooled token
    first: -1, // row of the latent whose number was searched for
    selected: -1,
    full: false,
    breaks: false,
  };

  // ---- data

  async function readArrays(text, layout) {
    const packed = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const block = await new Response(stream).arrayBuffer();
    const kinds = { Uint8Array, Uint16Array, Uint32Array, Float32Array };
    const arrays = {};
    for (const [name, [kind, start, length]] of Object.entries(layout)) {
      arrays[name] = new kinds[kind](block, start, length);
    }
    return arrays;
  }

  const density = (row) => data.count[row] / header.n_tokens;
  const sortKeys = {
    index: (row) => data.latent[row],
    density: (row) => data.count[row],
    maximum: (row) => data.maximum[row],
    mean: (row) => data.mean[row],
  };

  function groupStart(token) {
    while (data.pool_text[token] === 0) token -= 1;
    return token;
  }

  /** The texts at the maxima of a latent's windows, each once, strongest first. */
  function strongestTexts(row) {
    const texts = new Set();
    for (let w = data.window_from[row]; w < data.window_from[row + 1] && texts.size < MAX_CHIPS; w++) {
      texts.add(data.pool_text[groupStart(data.window_pool[w] + data.window_peak[w])]);
    }
    return [...texts].map((id) => header.strings[id]);
  }

  function logits(row, end) {
    const effects = [];
    for (let i = row * header.n_logits; i < (row + 1) * header.n_logits; i++) {
      effects.push({ text: header.strings[data[`${end}_text`][i]], value: data[`${end}_value`][i] });
    }
    return effects;
  }

  /** Groups of a window: text, share of the latent's maximum, and whether they hold the window's maximum. */
  function windowGroups(w) {
    const shares = new Map();
    for (let e = data.entry_from[w]; e < data.entry_from[w + 1]; e++) shares.set(data.entry_offset[e], data.entry_share[e]);
    const groups = [];
    const [from, to] = state.full
      ? [0, data.window_length[w]]
      : [data.window_peak[w] - SHORT.before, data.window_peak[w] + SHORT.after + 1];
    for (let offset = 0; offset < data.window_length[w]; offset++) {
      const token = data.window_pool[w] + offset;
      if (data.pool_text[token] !== 0) {
        groups.push({ token, text: header.strings[data.pool_text[token]], share: 0, peak: false, start: offset, stop: offset });
      }
      const group = groups[groups.length - 1];
      group.stop = offset + 1;
      group.share = Math.max(group.share, shares.get(offset) ?? 0);
      group.peak ||= offset === data.window_peak[w];
    }
    const kept = groups.filter((group) => group.stop > from && group.start < to);
    return {
      groups: kept,
      cutBefore: data.window_start[w] + kept[0].start > 0,
      cutAfter: data.window_start[w] + kept[kept.length - 1].stop < header.context_size,
    };
  }

  // ---- search

  /** Lower-cased text of the pool, and where each token starts in it; segments are kept apart by a character that
      no token contains. */
  function poolText() {
    if (poolText.made) return poolText.made;
    const lower = header.strings.map((text) => text.toLowerCase());
    const starts = new Uint32Array(data.pool_text.length + 1);
    const parts = [];
    let length = 0;
    for (let token = 0; token < data.pool_text.length; token++) {
      if (data.pool_opens[token]) {
        parts.push("\u0000");
        length += 1;
      }
      starts[token] = length;
      const text = lower[data.pool_text[token]];
      parts.push(text);
      length += text.length;
    }
    starts[data.pool_text.length] = length;
    poolText.made = { text: parts.join(""), starts, lower };
    return poolText.made;
  }

  /** Where a text occurs in the pool: first and last token of each match, in order, and the tokens they cover.
      `next[t]` is the first match that starts at token t or later; as all matches have one length, it also ends first. */
  function findMatches(needle) {
    const { text, starts } = poolText();
    const nTokens = data.pool_text.length;
    const [first, last] = [[], []];
    const covered = new Uint8Array(nTokens);
    let token = 0;
    for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + 1)) {
      while (starts[token + 1] <= at) token += 1;
      first.push(token);
      let t = token;
      for (; t < nTokens && starts[t] < at + needle.length; t++) covered[t] = 1;
      last.push(t - 1);
    }
    const next = new Uint32Array(nTokens).fill(first.length);
    for (let t = nTokens - 1, m = first.length - 1; t >= 0; t--) {
      while (m >= 0 && first[m] >= t) m -= 1;
      next[t] = m + 1;
    }
    return { first, last, covered, next };
  }

  /** Whether a window holds a whole match, with an active token in it if need be. */
  function windowMatches(w, matches, active) {
    const from = data.window_pool[w];
    const to = from + data.window_length[w];
    for (let m = matches.next[from]; m < matches.first.length && matches.last[m] < to; m++) {
      if (!active) return true;
      for (let e = data.entry_from[w]; e < data.entry_from[w + 1]; e++) {
        const token = groupStart(from + data.entry_offset[e]);
        if (matches.first[m] <= token && token <= matches.last[m]) return true;
      }
    }
    return false;
  }

  function search(query, scope) {
    const needle = query.toLowerCase();
    state.first = -1;
    state.matches = null;
    state.foundTokens = null;
    if (needle === "") return;
    const matches = new Uint8Array(nRows);
    if ((scope === "anywhere" || scope === "latent") && /^\s*#?\d+\s*$/.test(query)) {
      state.first = data.latent.indexOf(Number(query.replace(/[\s#]/g, "")));
      if (state.first >= 0) matches[state.first] = 1;
    }
    if (scope === "anywhere" || scope === "logits") {
      const { lower } = poolText();
      const hit = Uint8Array.from(lower, (text) => (text.includes(needle) ? 1 : 0));
      for (let row = 0; row < nRows; row++) {
        for (let i = row * header.n_logits; i < (row + 1) * header.n_logits && !matches[row]; i++) {
          matches[row] = hit[data.top_text[i]] | hit[data.bottom_text[i]];
        }
      }
    }
    if (scope === "anywhere" || scope === "contexts" || scope === "active") {
      const found = findMatches(needle);
      state.foundTokens = found.covered;
      for (let row = 0; row < nRows; row++) {
        for (let w = data.window_from[row]; w < data.window_from[row + 1] && !matches[row]; w++) {
          matches[row] = windowMatches(w, found, scope === "active");
        }
      }
    }
    state.matches = matches;
  }

  function reorder() {
    const key = sortKeys[state.key];
    const sign = state.descending ? -1 : 1;
    let rows = Array.from(data.latent.keys());
    if (state.matches) rows = rows.filter((row) => state.matches[row]);
    rows.sort((a, b) => sign * (key(a) - key(b)) || a - b);
    if (state.first >= 0) rows = [state.first, ...rows.filter((row) => row !== state.first)];
    state.order = Uint32Array.from(rows);
    byId("found").textContent = state.matches
      ? `${count(rows.length)} of ${count(nRows)}`
      : `${count(nRows)} latents`;
    byId("scroller").scrollTop = 0;
    showRows();
  }

  // ---- words and elements

  function count(value) {
    return value.toLocaleString("en-US");
  }

  function number(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e4 || size < 1e-3) return value.toExponential(2);
    return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size))));
  }

  function share(value) {
    return `${number(100 * value)} %`;
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function add(parent, ...children) {
    parent.append(...children);
    return parent;
  }

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
    return appendText(make("span", `chip ${className}`), text, false);
  }

  // ---- the table

  const columns = [
    ["index", "Latent", ""],
    ["density", "Density", "share of the tokens on which it fires (bar: logarithmic)"],
    ["maximum", "Max", "largest activation"],
    ["mean", "Mean", "mean activation where it fires"],
    [null, "Strongest tokens", ""],
    [null, header.n_logits ? "Top logits" : "", ""],
  ];

  function showColumns() {
    byId("columns").replaceChildren(
      ...columns.map(([key, label, tip]) => {
        const cell = make("div", "");
        cell.setAttribute("role", "columnheader");
        if (!key) {
          cell.textContent = label;
          return cell;
        }
        const button = make("button", "", label);
        button.type = "button";
        button.dataset.key = key;
        if (tip) button.dataset.tip = tip;
        cell.setAttribute("aria-sort", state.key !== key ? "none" : state.descending ? "descending" : "ascending");
        button.addEventListener("click", () => {
          state.descending = state.key === key ? !state.descending : key !== "index";
          state.key = key;
          showColumns();
          reorder();
          byId("columns").querySelector(`[data-key="${key}"]`).focus();
        });
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
    add(
      element,
      make("div", "cell index", data.latent[row]),
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
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW_HEIGHT) - 6);
    const last = Math.min(state.order.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW_HEIGHT) + 6);
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
      stats(row),
      add(make("div", "pair"), histogramCard(row), logitsCard(row)),
      contextsCard(row),
    );
  }

  function stats(row) {
    const list = make("dl", "stats");
    for (const [name, value, note] of [
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
    const card = add(make("div", "card"), make("h3", "", "Logits of its direction"));
    if (!header.n_logits) return add(card, make("p", "hint", header.logits_note));
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
    for (let w = from; w < to; w++) {
      const mark = add(make("div", "mark", number(data.window_maximum[w])), make("small", "", place(w)));
      list.append(add(make("li", ""), mark, contextText(row, w)));
    }
    return add(make("div", "card"), head, list);
  }

  function place(w) {
    return `${data.window_context[w]}:${data.window_start[w] + data.window_peak[w]}`;
  }

  function contextText(row, w) {
    const { groups, cutBefore, cutAfter } = windowGroups(w);
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
      if (state.foundTokens?.[group.token]) token.classList.add("found");
      line.append(token);
    }
    if (cutAfter) line.append(make("span", "cut", "…"));
    return line;
  }

  // ---- events

  function showTip(event) {
    const target = event.target.closest?.("[data-tip]");
    const tip = byId("tip");
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const x = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
    const above = event.clientY - tip.offsetHeight - 10;
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${above > 4 ? above : event.clientY + 18}px`;
  }

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
    search(byId("query").value, byId("scope").value);
    reorder();
    if (state.selected >= 0) showDetail();
  }

  byId("query").addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(runSearch, 160);
  });
  byId("scope").addEventListener("change", runSearch);
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    runSearch();
    if (state.order.length) select(state.order[0]);
  });
  byId("rows").addEventListener("click", (event) => {
    const element = event.target.closest(".row");
    if (element) select(Number(element.dataset.row), { scroll: false });
  });
  let frame = 0;
  const redraw = () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(showRows);
  };
  byId("scroller").addEventListener("scroll", redraw, { passive: true });
  addEventListener("resize", redraw);
  addEventListener("hashchange", () => select(data.latent.indexOf(Number(location.hash.slice(1)))));
  document.addEventListener("mousemove", showTip);
  document.addEventListener("keydown", onKey);

  // ---- start

  byId("title").textContent = header.title;
  byId("subtitle").textContent =
    (header.title === header.site ? "" : `${header.site} · `) +
    `${count(header.n_alive)} of ${count(header.d_sae)} latents fired on ${count(header.n_tokens)} ${header.split.replace("heldout", "held-out")} tokens`;
  byId("figures").append(
    ...header.figures.map(([name, value]) => add(make("div", ""), make("dt", "", name), make("dd", "", value))),
  );
  showColumns();
  reorder();
  const asked = data.latent.indexOf(Number(location.hash.slice(1) || NaN));
  select(asked >= 0 ? asked : state.order[0]);
  document.documentElement.dataset.ready = "true";
})();
