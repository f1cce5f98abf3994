// engine.js: the model, a second implementation of minilm/model/gpt.py that runs in a browser.
// Top-level names: Linear, Normalization, SelfAttention, MLP, TransformerBlock, MiniGPT, softmax, row, add.
//
// Names and order are gpt.py's, which also names the papers. Shapes: T characters in time, C channels
// (embed_dim), H heads, D = C/H channels per head, V characters in the vocabulary. An array of shape (T, C)
// is a Float32Array that holds row after row. Sums are in double precision, as JavaScript's numbers are.
//
// One thing is different: there is one forward pass, which always goes through a cache of keys and values
// (kv_cache.js). With an empty one it is gpt.py's; with a filled one it continues a text.

// x Wᵀ + b: (T, inputs) -> (T, outputs), with weights (outputs, inputs).
class Linear {
  constructor(tensors, name, inputs) {
    this.inputs = inputs;
    this.weight = tensors[`${name}.weight`];
    this.bias = tensors[`${name}.bias`]; // undefined in a model without biases
  }

  // Almost all time goes by here, most of it for reading numbers. So four outputs are summed up at once, of
  // two characters: a number that is read serves several products, and no sum waits for another.
  forward(x) {
    const { inputs, weight, bias } = this;
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
          a0 += a * weight[w0 + i], a1 += a * weight[w1 + i];
          a2 += a * weight[w2 + i], a3 += a * weight[w3 + i];
        }
        const to = (time - 1) * outputs;
        y[to + o] = a0, y[to + o1] = a1, y[to + o2] = a2, y[to + o3] = a3;
      }
    }
    if (bias) for (let t = 0; t < time; t++) add(row(y, t, outputs), bias);
    return y;
  }
}

// Bring each vector to unit scale, then let a learned gain scale its channels: (T, channels) -> the same.
//
// layernorm  (x - mean) / sqrt(variance) · gain + bias
// rmsnorm    x / sqrt(mean(x²)) · gain
class Normalization {
  constructor(config, tensors, name) {
    this.centered = config.normalization === "layernorm";
    this.gain = tensors[`${name}.weight`];
    this.bias = tensors[`${name}.bias`];
  }

  forward(x) {
    const { centered, gain, bias } = this, channels = gain.length;
    const y = new Float32Array(x.length);
    for (let from = 0; from < x.length; from += channels) {
      let mean = 0, square = 0;
      if (centered) for (let c = 0; c < channels; c++) mean += x[from + c] / channels;
      for (let c = 0; c < channels; c++) square += (x[from + c] - mean) ** 2 / channels;
      const scale = 1 / Math.sqrt(square + 1e-5);
      for (let c = 0; c < channels; c++) {
        y[from + c] = (x[from + c] - mean) * scale * gain[c] + (bias ? bias[c] : 0);
      }
    }
    return y;
  }
}

// Causal multi-head self-attention: each position gathers from itself and from those before it.
//
// Each head computes softmax(Q Kᵀ / sqrt(D) + ALiBi's bias) V over its own D channels. No mask is needed:
// what comes later is not in the cache yet.
class SelfAttention {
  constructor(config, tensors, name) {
    this.config = config;
    this.headDim = config.embed_dim / config.num_heads;
    this.qkv = new Linear(tensors, `${name}.qkv`, config.embed_dim);
    if (config.qk_norm) {
      this.queryNorm = new Normalization(config, tensors, `${name}.query_norm`);
      this.keyNorm = new Normalization(config, tensors, `${name}.key_norm`);
    }
    this.projection = new Linear(tensors, `${name}.projection`, config.embed_dim);
    if (config.position === "rope") this.frequencies = rotationFrequencies(this.headDim);
    if (config.position === "alibi") this.slopes = alibiSlopes(config.num_heads);
  }

  // (T, C) -> (T - skipped, C), the first character being at `position`. The part of heads that are `off`
  // stays zero; `weights`, (H, T, T), if it is there, receives what each character attends to.
  forward(x, position, memory, off, weights, skipped) {
    const { embed_dim, num_heads, block_size } = this.config;
    const { query, key, value } = this.projectQkv(x, position);
    const time = x.length / embed_dim, buffer = new Float64Array(block_size);
    const gathered = new Float32Array((time - skipped) * embed_dim); // the heads side by side
    for (let t = 0; t < time; t++) {
      // The newest character takes the place of the one that leaves the window.
      const place = (position + t) % block_size, length = Math.min(block_size, position + t + 1);
      memory.keys.set(row(key, t, embed_dim), place * embed_dim);
      memory.values.set(row(value, t, embed_dim), place * embed_dim);
      if (t < skipped) continue;
      for (let head = 0; head < num_heads; head++) {
        const from = t * embed_dim + head * this.headDim; // where the head's channels begin
        const to = from - skipped * embed_dim;
        const attended = buffer.subarray(0, length); // the weight of each character in the window
        this.attentionWeights(query, from, memory.keys, head, place, attended);
        if (weights) weights.set(attended, (head * time + t) * time);
        if (!off.includes(head)) this.gather(attended, memory.values, head, gathered, to);
      }
    }
    return this.projection.forward(gathered);
  }

  // Queries, keys and values of all heads: (T, C) -> three (T, H, D).
  projectQkv(x, position) {
    const { embed_dim, qk_norm } = this.config;
    const qkv = this.qkv.forward(x); // (T, 3, H, D)
    let [query, key, value] = [0, 1, 2].map(part => {
      const own = new Float32Array(x.length);
      for (let from = 0; from < x.length; from += embed_dim) {
        own.set(row(qkv, (3 * from) / embed_dim + part, embed_dim), from);
      }
      return own;
    });
    if (qk_norm) [query, key] = [this.queryNorm.forward(query), this.keyNorm.forward(key)];
    if (this.frequencies) for (const x of [query, key]) rotate(x, position, embed_dim, this.frequencies);
    return { query, key, value };
  }

  // softmax(q Kᵀ / sqrt(D) + ALiBi's bias) of the query at `from`, into `scores`, one for each key.
  attentionWeights(query, from, keys, head, place, scores) {
    const { headDim, config: { embed_dim, block_size } } = this;
    const scale = 1 / Math.sqrt(headDim); // keeps the scores' variance at 1, whatever D is
    for (let p = 0; p < scores.length; p++) {
      const first = p * embed_dim + head * headDim;
      let sum = 0;
      for (let d = 0; d < headDim; d++) sum += query[from + d] * keys[first + d];
      scores[p] = sum * scale;
      // A score falls with the distance, which is counted backwards around the places.
      if (this.slopes) scores[p] -= this.slopes[head] * ((place - p + block_size) % block_size);
    }
    softmax(scores);
  }

  // The sum of all values by their weights, (D,), into `gathered` from `to` on.
  gather(weights, values, head, gathered, to) {
    const { headDim, config: { embed_dim } } = this;
    for (let p = 0; p < weights.length; p++) {
      const first = p * embed_dim + head * headDim, weight = weights[p];
      for (let d = 0; d < headDim; d++) gathered[to + d] += weight * values[first + d];
    }
  }
}

// What each position computes by itself: widen, apply the non-linearity, narrow.
class MLP {
  constructor(config, tensors, name) {
    this.activation = config.activation;
    this.hidden = tensors[`${name}.projection.weight`].length / config.embed_dim;
    this.expand = new Linear(tensors, `${name}.expand`, config.embed_dim);
    this.projection = new Linear(tensors, `${name}.projection`, this.hidden);
  }

  // (T, C) -> (T, C).
  forward(x) {
    return this.projection.forward(this.activate(this.expand.forward(x)));
  }

  // The non-linearity: (T, widened) -> (T, hidden). swiglu widens by two matrices, a gate's and a value's.
  activate(x) {
    if (this.activation === "relu") return x.map(v => Math.max(0, v));
    if (this.activation === "gelu") {
      return x.map(v => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))));
    }
    if (this.activation === "relu2") return x.map(v => Math.max(0, v) ** 2);
    const silu = v => v / (1 + Math.exp(-v)), hidden = this.hidden;
    return new Float32Array(x.length / 2).map((_, i) => {
      const gate = i + Math.floor(i / hidden) * hidden; // a row holds all gates, then all values
      return silu(x[gate]) * x[gate + hidden];
    });
  }
}

// Attention, then the MLP; each reads a normalized copy of the residual stream and adds to it.
class TransformerBlock {
  constructor(config, tensors, name) {
    this.config = config;
    this.attentionNorm = new Normalization(config, tensors, `${name}.attention_norm`);
    this.attention = new SelfAttention(config, tensors, `${name}.attention`);
    this.mlpNorm = new Normalization(config, tensors, `${name}.mlp_norm`);
    this.mlp = new MLP(config, tensors, `${name}.mlp`);
  }

  // (T, C), which changes in place -> its last T - skipped rows.
  forward(x, position, memory, off, weights, skipped) {
    const { embed_dim } = this.config;
    const read = tokenShift(this.attentionNorm.forward(x), embed_dim, memory.beforeAttention);
    x = x.subarray(skipped * embed_dim);
    add(x, this.attention.forward(read, position, memory, off.heads, weights, skipped));
    if (!off.mlp) add(x, this.mlp.forward(tokenShift(this.mlpNorm.forward(x), embed_dim, memory.beforeMlp)));
    return x;
  }
}

// Embeddings, the blocks, a final normalization, and a logit for each character of the vocabulary.
class MiniGPT {
  // `config`: the fields of ModelConfig; `tensors`: {name: Float32Array}, with the names of state_dict().
  constructor(config, tensors) {
    const { block_size, embed_dim, num_layers, position, tied_embeddings } = config;
    this.config = config;
    this.tensors = tensors;
    if (position === "learned") this.positionTable = tensors["position_embedding.weight"];
    if (position === "sinusoidal") this.positionTable = sinusoidalTable(block_size, embed_dim);
    const names = Array.from({ length: num_layers }, (_, layer) => `blocks.${layer}`);
    this.blocks = names.map(name => new TransformerBlock(config, tensors, name));
    this.finalNorm = new Normalization(config, tensors, "final_norm");
    this.unembedding = new Linear(tensors, tied_embeddings ? "token_embedding" : "head", embed_dim);
  }

  // Logits for the character after each of T ids but the first, `skipped`: {logits: (T - skipped, V)}.
  //
  // `off` = {heads: [[layer, head], ...], mlps: [layer, ...]} contribute nothing. With `inside` there are
  // `attention`, (H, T, T) of each layer, and `lens`: the logits, (T, V), that the residual stream would give
  // before each block and after the last ("interpreting GPT: the logit lens", nostalgebraist, 2020).
  forward(ids, { off = {}, inside = false, skipped = 0, cache = new Cache(this.config) } = {}) {
    const { block_size, num_heads, vocab_size } = this.config, { heads = [], mlps = [] } = off;
    if (ids.length > block_size) {
      throw new Error(`${ids.length} characters are more than the model's block_size, ${block_size}`);
    }
    const attention = [], lens = [];
    let x = this.embed(ids, cache); // the residual stream, (T, C)
    this.blocks.forEach((block, layer) => {
      const offHere = {
        heads: heads.filter(([ofLayer]) => ofLayer === layer).map(([, head]) => head),
        mlp: mlps.includes(layer),
      };
      if (inside) {
        lens.push(this.unembed(x));
        attention.push(new Float32Array(num_heads * ids.length ** 2));
      }
      // Of what is skipped the last block only needs keys and values; token_shift would read more of it.
      const last = layer === this.blocks.length - 1 && !this.config.token_shift;
      x = block.forward(x, cache.length, cache.layers[layer], offHere, attention[layer], last ? skipped : 0);
    });
    cache.length += ids.length;
    const logits = this.unembed(x).subarray((skipped - ids.length) * vocab_size);
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
      const stream = row(x, t, embed_dim);
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

  // The residual stream after the last block -> logits, softly within ±logit_softcap: (T, C) -> (T, V).
  unembed(x) {
    const logits = this.unembedding.forward(this.finalNorm.forward(x)), cap = this.config.logit_softcap;
    return cap ? logits.map(logit => cap * Math.tanh(logit / cap)) : logits;
  }
}

// exp(x) / sum(exp(x)), in place. The largest is taken off first: exp would overflow without.
function softmax(x) {
  let largest = -Infinity, sum = 0;
  for (let i = 0; i < x.length; i++) if (x[i] > largest) largest = x[i];
  for (let i = 0; i < x.length; i++) sum += x[i] = Math.exp(x[i] - largest);
  for (let i = 0; i < x.length; i++) x[i] /= sum;
  return x;
}

// Row i of an array with so many columns: a view, not a copy.
function row(array, i, columns) {
  return array.subarray(i * columns, (i + 1) * columns);
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}
