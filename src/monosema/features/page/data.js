// The page's data and what can be asked of it; knows no elements. "Row" is a latent's place in the arrays, w a window,
// e an entry of a window, and a token is a place in the pool that windows are cut from. In the pool, text 0 is a token
// that belongs to the group of the one before.

const SHORT = { before: 10, after: 5 };
const MAX_TEXTS = 5;

/** The arrays with the questions below, from the header and the text of the data block. */
async function openData(header, text) {
  const data = await readArrays(text, header.arrays);
  const nRows = data.latent.length;

  const density = (row) => data.count[row] / header.n_tokens;
  const sortKeys = {
    index: (row) => data.latent[row],
    clarity: (row) => data.clarity[row],
    density: (row) => data.count[row],
    maximum: (row) => data.maximum[row],
    mean: (row) => data.mean[row],
  };

  /** The layer of a latent of a stack; null where there are no layers. */
  function layer(row) {
    return header.layers[Math.floor((data.latent[row] * header.layers.length) / header.d_sae)] ?? null;
  }

  function groupStart(token) {
    while (data.pool_text[token] === 0) token -= 1;
    return token;
  }

  /** The texts at the maxima of a latent's windows, each once, strongest first. */
  function strongestTexts(row) {
    const texts = new Set();
    for (let w = data.window_from[row]; w < data.window_from[row + 1] && texts.size < MAX_TEXTS; w++) {
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
  function windowGroups(w, full) {
    const shares = new Map();
    for (let e = data.entry_from[w]; e < data.entry_from[w + 1]; e++) shares.set(data.entry_offset[e], data.entry_share[e]);
    const groups = [];
    const [from, to] = full
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

  /** What a query finds: `rows` has a 1 for each latent (null: everything), `exact` is the row of the latent whose
      number was asked for (-1: none), `missing` that number where the page does not have the latent (null: none),
      `tokens` has a 1 for each token of the pool that matches (null: not looked at). */
  function search(query, scope) {
    const needle = query.toLowerCase();
    const found = { rows: null, exact: -1, missing: null, tokens: null };
    if (needle === "") return found;
    const rows = new Uint8Array(nRows);
    found.rows = rows;
    if ((scope === "anywhere" || scope === "latent") && /^\s*#?\d+\s*$/.test(query)) {
      const asked = Number(query.replace(/[\s#]/g, ""));
      found.exact = data.latent.indexOf(asked);
      if (found.exact >= 0) rows[found.exact] = 1;
      else found.missing = asked;
    }
    if (scope === "anywhere" || scope === "logits") {
      const hit = Uint8Array.from(poolText().lower, (text) => (text.includes(needle) ? 1 : 0));
      for (let row = 0; row < nRows; row++) {
        for (let i = row * header.n_logits; i < (row + 1) * header.n_logits && !rows[row]; i++) {
          rows[row] = hit[data.top_text[i]] | hit[data.bottom_text[i]];
        }
      }
    }
    if (scope === "anywhere" || scope === "contexts" || scope === "active") {
      const matches = findMatches(needle);
      found.tokens = matches.covered;
      for (let row = 0; row < nRows; row++) {
        for (let w = data.window_from[row]; w < data.window_from[row + 1] && !rows[row]; w++) {
          rows[row] = windowMatches(w, matches, scope === "active");
        }
      }
    }
    return found;
  }

  return { ...data, nRows, density, layer, sortKeys, strongestTexts, logits, windowGroups, search };
}
