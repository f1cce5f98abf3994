// local_context.js: what the characters just before contribute directly, as minilm/model/local_context.py.
// Top-level names: PRIME, shiftedChannels, tokenShift, ngramRows.

const PRIME = 2654435761;

// How many channels are shifted: Python rounds halves to the even number.
function shiftedChannels({ token_shift, embed_dim }) {
  const channels = token_shift * embed_dim, rounded = Math.round(channels);
  return rounded - channels === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// Take the first channels from the position before: (T, C) -> (T, C). `before` holds those of the position
// before the first, and afterwards those of the last.
function tokenShift(x, embedDim, before) {
  if (!before.length) return x;
  const y = x.slice();
  for (let from = 0; from < x.length; from += embedDim) {
    y.set(before, from);
    before.set(x.subarray(from, from + before.length));
  }
  return y;
}

// Rows of the n-gram tables, one for each n from 2 to N, for the latest N ids. An n-gram is a number of n
// digits in base V, the newest character being its last digit. Where a table has no row for each, numbers are
// hashed to 32 bits, and large powers taken modulo a prime. Math.imul multiplies modulo 2^32; a plain product
// of numbers of 32 bits would be rounded, that of a power and the vocabulary's size is not.
function ngramRows(latest, { vocab_size, ngram_rows, ngram_embedding }) {
  const rows = [];
  let offset = 0, number = latest.at(-1), power = 1;
  for (let n = 2; n <= ngram_embedding; n++) {
    power = (power * vocab_size) % PRIME;
    number = (number + Math.imul(latest.at(-n), power)) >>> 0;
    const exact = vocab_size ** n <= ngram_rows, size = exact ? vocab_size ** n : ngram_rows;
    const hash = Math.imul(number, PRIME) >>> 0;
    rows.push(offset + (exact ? number : Math.floor((hash / 2 ** 32) * size)));
    offset += size;
  }
  return rows;
}
