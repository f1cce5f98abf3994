// kv_cache.js: one character after the other, as minilm/generation/kv_cache.py.
// Top-level names: Cache, Decoder.

// What was computed for the characters before. A character's keys and values never change, so that each is
// computed once. There is room for the latest block_size: a character's place is its position modulo that.
class Cache {
  constructor(config) {
    const { block_size, embed_dim, num_layers, ngram_embedding } = config;
    this.length = 0; // characters so far, which is the position of the next one
    this.latest = new Array(ngram_embedding).fill(0); // ids; before the first stands the unknown character
    this.layers = Array.from({ length: num_layers }, () => ({
      keys: new Float32Array(block_size * embed_dim),
      values: new Float32Array(block_size * embed_dim),
      // What token_shift takes from the latest character to the next one.
      beforeAttention: new Float32Array(shiftedChannels(config)),
      beforeMlp: new Float32Array(shiftedChannels(config)),
    }));
  }
}

// A text under way: `prefill`, then `step`, give logits for the next character, (V,).
class Decoder {
  constructor(model, off) {
    this.model = model;
    this.off = off;
    // These know distances only, so that the window slides. With the other schemes each character would get a
    // new position: the window is filled again from its most recent half.
    this.slides = ["rope", "alibi"].includes(model.config.position);
  }

  // Start with the latest block_size ids.
  prefill(ids) {
    this.recent = ids.slice(-this.model.config.block_size);
    this.cache = new Cache(this.model.config);
    return this.next(this.recent);
  }

  // Continue by one.
  step(id) {
    const { block_size } = this.model.config;
    if (!this.slides) {
      if (this.cache.length === block_size) {
        return this.prefill([...this.recent, id].slice(-Math.max(1, Math.floor(block_size / 2))));
      }
      this.recent.push(id);
    }
    return this.next([id]);
  }

  next(ids) {
    return this.model.forward(ids, { off: this.off, skipped: ids.length - 1, cache: this.cache }).logits;
  }
}
