// engine.js: the model, a second implementation of minilm/model/*.py that runs in a browser.
// Top-level names: Model, Cache, Decoder, and the functions below them: linear, normalize, activate, softmax, rotate,
// tokenShift, rotationFrequencies, alibiSlopes, sinusoidalTable, ngramRows, shiftedChannels.
//
// Names and order are gpt.py's. Shapes as there: T characters in time, C channels (embed_dim), H heads, D = C/H
// channels per head, V characters in the vocabulary. An array of shape (T, C) is a Float32Array that holds row
// after row. Sums are taken in double precision, as JavaScript's numbers are, and rounded when they are stored.
//
// One thing is different: there is one forward pass, which always goes through a key/value cache (see Cache). With an
// empty cache it is gpt.py's; with a filled one, it continues a text as generation/kv_cache.py does.

class Model {
  // `config`: the fields of ModelConfig; `tensors`: {name: Float32Array}, with the names of model.state_dict().
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
    this.headDim = config.embed_dim / config.num_heads;
    this.shifted = shiftedChannels(config);
    this.slopes = config.position === "alibi" ? alibiSlopes(config.num_heads) : null;
    this.frequencies = rotationFrequencies(config.position === "rope" ? this.headDim : config.embed_dim);
    if (config.position === "learned") this.positionTable = tensors["position_embedding.weight"];
    if (config.position === "sinusoidal") {
      this.positionTable = sinusoidalTable(config.block_size, config.embed_dim, this.frequencies);
    }
  }

  // Logits for the character after each of T ids, (T, V).
  //
  // `off` = {heads: [[layer, head], ...], mlps: [layer, ...]} contribute nothing. With `inside` there are also
  // `attention`, (H, T, T) of each layer, and `lens`: the logits, (T, V), that the residual stream would give before
  // each block and after the last ("interpreting GPT: the logit lens", nostalgebraist, 2020).
  forward(ids, { off = {}, inside = false, cache = new Cache(this.config) } = {}) {
    const { block_size, num_layers } = this.config;
    if (ids.length > block_size) {
      throw new Error(`${ids.length} characters are more than the model's block_size, ${block_size}`);
    }
    const attention = [], lens = [];
    const x = this.embed(ids, cache); // the residual stream, (T, C), to which each part adds
    for (let layer = 0; layer < num_layers; layer++) {
      if (inside) lens.push(this.unembed(x));
      const heads = (off.heads ?? []).filter(([ofLayer]) => ofLayer === layer).map(([, head]) => head);
      const weights = inside ? new Float32Array(this.config.num_heads * ids.length ** 2) : null;
      add(x, this.selfAttention(layer, this.norm(`blocks.${layer}.attention_norm`, x), cache, heads, weights));
      if (inside) attention.push(weights);
      if (!(off.mlps ?? []).includes(layer)) {
        add(x, this.mlp(layer, this.norm(`blocks.${layer}.mlp_norm`, x), cache));
      }
    }
    cache.length += ids.length;
    const logits = this.unembed(x);
    return inside ? { logits, attention, lens: [...lens, logits] } : { logits };
  }

  // The residual stream before the first block: T ids -> (T, C).
  embed(ids, cache) {
    const { embed_dim, vocab_size, ngram_embedding } = this.config;
    const x = new Float32Array(ids.length * embed_dim);
    ids.forEach((id, t) => {
      if (!(Number.isInteger(id) && id >= 0 && id < vocab_size)) {
        throw new Error(`ids must be from 0 to ${vocab_size - 1}, found ${id}`);
      }
      const stream = x.subarray(t * embed_dim, (t + 1) * embed_dim);
      add(stream, row(this.tensors["token_embedding.weight"], id, embed_dim));
      if (this.positionTable) add(stream, row(this.positionTable, cache.length + t, embed_dim));
      if (ngram_embedding > 1) {
        cache.latest = [...cache.latest.slice(1), id];
        for (const index of ngramRows(cache.latest, this.config)) {
          add(stream, row(this.tensors["ngram_embedding.tables.weight"], index, embed_dim));
        }
      }
    });
    return x;
  }

  // Causal multi-head self-attention: softmax(Q Kᵀ / sqrt(D) + mask) V of each head, then one matrix: (T, C) -> (T, C).
  //
  // `off` are heads whose part stays zero; `weights`, if wanted, (H, T, T), receives what each character attends to.
  selfAttention(layer, x, cache, off, weights) {
    const { embed_dim, num_heads, block_size } = this.config;
    const { keys, values, shifted } = cache.layers[layer];
    const { query, key, value } = this.projectQkv(layer, tokenShift(x, embed_dim, shifted.attention), cache.length);
    const time = query.length / embed_dim, gathered = new Float32Array(query.length); // the heads side by side
    const scores = new Float64Array(Math.min(block_size, cache.length + time));
    for (let t = 0; t < time; t++) {
      // The newest character takes the place of the one that leaves the window. No mask is needed: what comes
      // later is not in the cache yet.
      const position = cache.length + t, place = position % block_size;
      keys.set(row(key, t, embed_dim), place * embed_dim);
      values.set(row(value, t, embed_dim), place * embed_dim);
      const window = Math.min(block_size, position + 1);
      for (let head = 0; head < num_heads; head++) {
        const channel = head * this.headDim; // the head's first
        this.attentionWeights(query, t * embed_dim + channel, keys, channel, place, scores.subarray(0, window), head);
        if (weights) weights.set(scores.subarray(0, window), (head * time + t) * time);
        if (!off.includes(head)) this.gather(scores, values, channel, window, gathered, t * embed_dim + channel);
      }
    }
    return this.linear(`blocks.${layer}.attention.projection`, gathered, embed_dim);
  }

  // Queries, keys and values of all heads: (T, C) -> three (T, H, D), the first character being at `position`.
  projectQkv(layer, x, position) {
    const { embed_dim, qk_norm, position: scheme } = this.config;
    const name = `blocks.${layer}.attention`, time = x.length / embed_dim;
    const qkv = this.linear(`${name}.qkv`, x, embed_dim); // (T, 3, H, D)
    let [query, key, value] = [0, 1, 2].map(part => {
      const own = new Float32Array(time * embed_dim);
      for (let t = 0; t < time; t++) own.set(row(qkv, 3 * t + part, embed_dim), t * embed_dim);
      return own;
    });
    if (qk_norm) [query, key] = [this.norm(`${name}.query_norm`, query), this.norm(`${name}.key_norm`, key)];
    if (scheme === "rope") {
      rotate(query, position, embed_dim, this.frequencies);
      rotate(key, position, embed_dim, this.frequencies);
    }
    return { query, key, value };
  }

  // softmax(q Kᵀ / sqrt(D) + ALiBi's bias) of one query with all keys of the window, into `scores`.
  attentionWeights(query, from, keys, channel, place, scores, head) {
    const { embed_dim, block_size } = this.config, headDim = this.headDim;
    const scale = 1 / Math.sqrt(headDim); // keeps the scores' variance at 1, whatever D is
    const slope = this.slopes ? this.slopes[head] : 0;
    for (let p = 0; p < scores.length; p++) {
      let sum = 0;
      for (let d = 0, k = p * embed_dim + channel; d < headDim; d++) sum += query[from + d] * keys[k + d];
      scores[p] = sum * scale;
      if (slope) scores[p] -= slope * ((place - p + block_size) % block_size); // the distance in characters
    }
    softmax(scores);
  }

  // The weighted sum of the window's values, (D,), into `gathered`.
  gather(weights, values, channel, window, gathered, to) {
    const { embed_dim } = this.config, headDim = this.headDim;
    for (let p = 0; p < window; p++) {
      const weight = weights[p];
      for (let d = 0, v = p * embed_dim + channel; d < headDim; d++) gathered[to + d] += weight * values[v + d];
    }
  }

  // What each position computes by itself: widen, apply the non-linearity, narrow: (T, C) -> (T, C).
  mlp(layer, x, cache) {
    const { embed_dim, activation } = this.config, name = `blocks.${layer}.mlp`;
    const read = tokenShift(x, embed_dim, cache.layers[layer].shifted.mlp);
    const widened = this.linear(`${name}.expand`, read, embed_dim);
    const hidden = this.tensors[`${name}.projection.weight`].length / embed_dim;
    return this.linear(`${name}.projection`, activate(widened, activation, hidden), hidden);
  }

  // The residual stream -> logits, softly within ±logit_softcap if that is set: (T, C) -> (T, V).
  unembed(x) {
    const { embed_dim, logit_softcap, tied_embeddings } = this.config;
    const unembedding = this.tensors[tied_embeddings ? "token_embedding.weight" : "head.weight"];
    const logits = linear(this.norm("final_norm", x), unembedding, undefined, embed_dim);
    return logit_softcap ? logits.map(logit => logit_softcap * Math.tanh(logit / logit_softcap)) : logits;
  }

  // The modules that have parameters, by name; without biases the model has no tensor of that name.
  linear(name, x, inputs) {
    return linear(x, this.tensors[`${name}.weight`], this.tensors[`${name}.bias`], inputs);
  }

  norm(name, x) {
    const centered = this.config.normalization === "layernorm";
    return normalize(x, this.tensors[`${name}.weight`], this.tensors[`${name}.bias`], centered);
  }
}

// What was computed for the characters before, as generation/kv_cache.py explains: a character's keys and values never
// change, so that each is computed once. It holds the latest block_size; the place of a character is its position
// modulo block_size.
class Cache {
  constructor({ block_size, embed_dim, num_layers, ngram_embedding, ...config }) {
    const channels = shiftedChannels({ embed_dim, ...config });
    this.length = 0; // characters so far, which is the position of the next one
    this.latest = new Array(ngram_embedding).fill(0); // ids; before the first stands the unknown character
    this.layers = Array.from({ length: num_layers }, () => ({
      keys: new Float32Array(block_size * embed_dim),
      values: new Float32Array(block_size * embed_dim),
      // What the latest character hands to the next one by token_shift; before the first stands nothing.
      shifted: { attention: new Float32Array(channels), mlp: new Float32Array(channels) },
    }));
  }
}

// A text under way: `prefill`, then `step`, give logits for the next character, (V,).
class Decoder {
  constructor(model, off = {}) {
    Object.assign(this, { model, off });
    // Rope and alibi know distances only, so that the window slides. With the other schemes each character would get
    // a new position: the window is filled again from its most recent half.
    this.slides = ["rope", "alibi"].includes(model.config.position);
  }

  // Start with the latest block_size ids.
  prefill(ids) {
    this.recent = [...ids].slice(-this.model.config.block_size);
    this.cache = new Cache(this.model.config);
    return this.next(this.recent);
  }

  // Continue by one.
  step(id) {
    const { block_size } = this.model.config;
    if (this.slides) return this.next([id]);
    if (this.cache.length === block_size) {
      return this.prefill([...this.recent, id].slice(-Math.max(1, Math.floor(block_size / 2))));
    }
    this.recent.push(id);
    return this.next([id]);
  }

  next(ids) {
    const { logits } = this.model.forward(ids, { off: this.off, cache: this.cache });
    return logits.subarray(-this.model.config.vocab_size);
  }
}

// x Wᵀ + b: (T, inputs) -> (T, outputs), for weights (outputs, inputs).
//
// Almost all time goes by here, most of it for reading numbers. So four outputs are summed up at once, of two
// characters: each number that is read serves two products or more, and no sum waits for another.
function linear(x, weight, bias, inputs) {
  const time = x.length / inputs, outputs = weight.length / inputs, last = outputs - 1;
  const y = new Float32Array(time * outputs);
  for (let o = 0; o < outputs; o += 4) {
    // Where the outputs end before the fourth, the last one is computed again.
    const o1 = Math.min(o + 1, last), o2 = Math.min(o + 2, last), o3 = Math.min(o + 3, last);
    const w0 = o * inputs, w1 = o1 * inputs, w2 = o2 * inputs, w3 = o3 * inputs;
    for (let t = 0; t + 1 < time; t += 2) {
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      for (let i = 0, from = t * inputs; i < inputs; i++, from++) {
        const a = x[from], b = x[from + inputs];
        const v0 = weight[w0 + i], v1 = weight[w1 + i], v2 = weight[w2 + i], v3 = weight[w3 + i];
        a0 += a * v0, a1 += a * v1, a2 += a * v2, a3 += a * v3;
        b0 += b * v0, b1 += b * v1, b2 += b * v2, b3 += b * v3;
      }
      const toA = t * outputs, toB = toA + outputs;
      y[toA + o] = a0, y[toA + o1] = a1, y[toA + o2] = a2, y[toA + o3] = a3;
      y[toB + o] = b0, y[toB + o1] = b1, y[toB + o2] = b2, y[toB + o3] = b3;
    }
    if (time % 2) { // the character that has no partner, such as the only one when text is written
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0;
      for (let i = 0, from = (time - 1) * inputs; i < inputs; i++, from++) {
        const a = x[from];
        a0 += a * weight[w0 + i], a1 += a * weight[w1 + i], a2 += a * weight[w2 + i], a3 += a * weight[w3 + i];
      }
      const toA = (time - 1) * outputs;
      y[toA + o] = a0, y[toA + o1] = a1, y[toA + o2] = a2, y[toA + o3] = a3;
    }
  }
  if (bias) for (let t = 0; t < time; t++) add(row(y, t, outputs), bias);
  return y;
}

// LayerNorm, (x - mean) / sqrt(variance) · gain + bias, or without `centered` RMSNorm, x / sqrt(mean(x²)) · gain.
function normalize(x, gain, bias, centered) {
  const channels = gain.length, y = new Float32Array(x.length);
  for (let from = 0; from < x.length; from += channels) {
    let mean = 0, square = 0;
    if (centered) for (let c = 0; c < channels; c++) mean += x[from + c] / channels;
    for (let c = 0; c < channels; c++) square += (x[from + c] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / channels + 1e-5);
    for (let c = 0; c < channels; c++) {
      y[from + c] = (x[from + c] - mean) * scale * gain[c] + (bias ? bias[c] : 0);
    }
  }
  return y;
}

// The MLP's non-linearity: (T, widened) -> (T, hidden). Of swiglu's two halves one is the gate, the other the value.
function activate(x, activation, hidden) {
  const gelu = v => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)));
  const silu = v => v / (1 + Math.exp(-v));
  if (activation === "relu") return x.map(v => Math.max(0, v));
  if (activation === "gelu") return x.map(gelu);
  if (activation === "relu2") return x.map(v => Math.max(0, v) ** 2);
  const y = new Float32Array(x.length / 2);
  for (let t = 0; t < y.length / hidden; t++) {
    const gate = row(x, 2 * t, hidden), value = row(x, 2 * t + 1, hidden);
    for (let i = 0; i < hidden; i++) y[t * hidden + i] = silu(gate[i]) * value[i];
  }
  return y;
}

// exp(x) / sum(exp(x)), in place. Less the largest, which changes nothing but keeps exp within the range of numbers.
function softmax(x) {
  let largest = -Infinity, sum = 0;
  for (let i = 0; i < x.length; i++) if (x[i] > largest) largest = x[i];
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) x[i] /= sum;
  return x;
}

// Take the first channels from the position before: (T, C) -> (T, C); `before` holds those of the position before the
// first, and then those of the last.
function tokenShift(x, channels, before) {
  const shifted = before.length;
  if (!shifted) return x;
  const y = x.slice();
  for (let from = 0; from < x.length; from += channels) {
    y.set(before, from);
    before.set(x.subarray(from, from + shifted));
  }
  return y;
}

// How many: Python rounds halves to the even number.
function shiftedChannels({ token_shift, embed_dim }) {
  const channels = token_shift * embed_dim, rounded = Math.round(channels);
  return rounded - channels === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// 1 / 10000^(2i/channels) of each pair i of channels: the angle that one position adds (positions.py).
function rotationFrequencies(channels) {
  return Float32Array.from({ length: Math.ceil(channels / 2) }, (_, i) => 10000 ** Math.fround((-2 * i) / channels));
}

// RoPE: rotate the pairs (i, i + D/2) of each head's channels by position · frequency, in place, (T, H, D).
function rotate(x, position, embedDim, frequencies) {
  const half = frequencies.length;
  for (let from = 0; from < x.length; from += 2 * half) {
    const time = position + Math.floor(from / embedDim);
    for (let i = from; i < from + half; i++) {
      const angle = time * frequencies[i - from], cos = Math.cos(angle), sin = Math.sin(angle);
      [x[i], x[i + half]] = [x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin];
    }
  }
}

// Sines and cosines of the position, (length, channels), taking turns.
function sinusoidalTable(length, channels, frequencies) {
  return Float32Array.from({ length: length * channels }, (_, i) => {
    const time = Math.floor(i / channels), channel = i % channels;
    const angle = time * frequencies[channel >> 1];
    return channel % 2 ? Math.cos(angle) : Math.sin(angle);
  });
}

// By how much each head's scores fall per character of distance, (H,): the sequence of the next lower power of two
// heads, filled up with every second slope of the next higher one.
function alibiSlopes(heads) {
  const lower = 2 ** Math.floor(Math.log2(heads));
  return Float32Array.from({ length: heads }, (_, head) =>
    head < lower ? 2 ** ((-8 / lower) * (head + 1)) : 2 ** ((-4 / lower) * (2 * (head - lower) + 1)));
}

// Rows of the n-gram tables, one for each n from 2 to N, for the latest N ids (local_context.py). An n-gram is a number
// of n digits in base V, the newest character being its last digit. If a table has no row for each, numbers are hashed
// to 32 bits: Math.imul multiplies modulo 2^32 without rounding, as a plain product of such numbers would not.
function ngramRows(latest, { vocab_size, ngram_rows, ngram_embedding }) {
  const rows = [];
  let offset = 0, number = 0, power = 1;
  for (let n = 1; n <= ngram_embedding; n++) {
    number = (number + Math.imul(latest.at(-n), power)) >>> 0;
    power = Math.imul(power, vocab_size);
    if (n === 1) continue;
    const exact = vocab_size ** n <= ngram_rows, size = exact ? vocab_size ** n : ngram_rows;
    const hash = Math.imul(number, 2654435761) >>> 0;
    rows.push(offset + (exact ? number : Math.floor((hash / 2 ** 32) * size)));
    offset += size;
  }
  return rows;
}

// Row i of an array with so many columns: a view, not a copy.
function row(array, i, columns) {
  return array.subarray(i * columns, (i + 1) * columns);
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}
