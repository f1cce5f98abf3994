// worker.js: answers client.js, on a thread of its own or, where the browser forbids that, on the page's.
// Top-level names: Service, serve, inflate, pause.

const FRAMES_KEPT = 4; // models of the film that are decoded; each takes four bytes per parameter
const SLICE = 15; // milliseconds of work, after which other requests have their turn

// Each public method answers the client's of that name.
class Service {
  constructor(models) {
    this.models = models; // as in the page's data
    this.tokenizers = models.map(model => new CharTokenizer(model.vocabulary));
    this.trained = new Map(); // promises of the tensors of each model
    this.frames = new Map(); // promises of those of the film's frames, the latest used last
  }

  async logits(ids, options) {
    return (await this.model(options)).forward(ids, { off: options.off }).logits;
  }

  async inside(ids, options) {
    return (await this.model(options)).forward(ids, { off: options.off, inside: true });
  }

  async tensor(name, options) {
    return (await this.model(options)).tensors[name];
  }

  // Overlapping windows score each character once, with at least half of block_size before it where there are so many
  // (minilm/evaluation/scoring.py).
  async surprisal(ids, options) {
    const model = await this.model(options), { block_size, vocab_size } = model.config;
    const nats = new Float32Array(ids.length).fill(NaN), predictions = ids.length - 1;
    const width = Math.min(block_size, predictions), stride = block_size - Math.floor(block_size / 2);
    for (let scored = 0; scored < predictions; ) {
      const end = Math.min(predictions, scored ? scored + stride : width), start = end - width;
      const { logits } = model.forward(ids.slice(start, end), { off: options.off });
      for (let t = scored; t < end; t++) {
        const probabilities = softmax(Float64Array.from(row(logits, t - start, vocab_size)));
        nats[t + 1] = -Math.log(probabilities[ids[t + 1]]);
      }
      scored = end;
      await pause();
    }
    return nats;
  }

  async generate(settings, options, onText, stopped) {
    const chosen = { ...DEFAULTS, ...settings };
    checkSettings(chosen);
    if (!chosen.prompt) throw new Error("the prompt is empty; give at least one character to continue");
    const prompt = chosen.prompt.replace(/\r\n?/g, "\n"); // as training has read line ends
    const model = await this.model(options), tokenizer = this.tokenizers[options.model ?? 0];
    const decoder = new Decoder(model, options.off), drawer = new Drawer(chosen.seed, model.config.vocab_size);
    let logits = decoder.prefill(tokenizer.encode(prompt)), text = prompt, sent = text.length, since = performance.now();
    if (!logits.every(Number.isFinite)) {
      throw new Error("the model's logits are no numbers: its weights are damaged, or its training diverged");
    }
    for (let remaining = chosen.maxNewTokens; remaining > 0 && !stopped(); remaining--) {
      const id = drawer.draw(logits, chosen);
      text += tokenizer.decode([id]);
      if (remaining > 1) logits = decoder.step(id);
      if (performance.now() - since > SLICE || remaining === 1) {
        onText(text.slice(sent));
        sent = text.length;
        await pause();
        since = performance.now();
      }
    }
    return text;
  }

  // The trained model, or a frame of its film.
  async model({ model = 0, frame }) {
    const data = this.models[model];
    const kept = frame === undefined ? this.trained : this.frames, key = `${model} ${frame}`;
    const tensors = kept.get(key) ?? (frame === undefined ? this.decode(data) : this.decodeFrame(data, data.film[frame]));
    kept.delete(key);
    kept.set(key, tensors);
    if (kept === this.frames && kept.size > FRAMES_KEPT) kept.delete(kept.keys().next().value);
    return new Model(data.config, await tensors);
  }

  // {name: Float32Array} of the model's weights, float32.
  async decode({ tensors, weights }) {
    const numbers = new Float32Array(await inflate(weights));
    return this.divide(tensors, numbers);
  }

  // The same of a frame, int8: each row of a matrix, and each vector, has a scale of its own.
  async decodeFrame({ tensors }, { weights, scales }) {
    const levels = new Int8Array(await inflate(weights)), numbers = Float32Array.from(levels);
    const scaleOf = new Float32Array(bytesOf(scales).buffer);
    let scale = 0;
    for (const { shape, offset } of Object.values(tensors)) {
      const columns = shape.at(-1), size = shape.reduce((a, b) => a * b);
      for (let from = offset; from < offset + size; from += columns, scale++) {
        for (let i = from; i < from + columns; i++) numbers[i] *= scaleOf[scale];
      }
    }
    return this.divide(tensors, numbers);
  }

  divide(tensors, numbers) {
    return Object.fromEntries(Object.entries(tensors).map(([name, { shape, offset }]) =>
      [name, numbers.subarray(offset, offset + shape.reduce((a, b) => a * b))]));
  }
}

// A function that takes the client's messages, {id, method, args}, and answers through `post`: {id, result},
// {id, error}, or, before that, {id, text} as often as there is more of it.
function serve(models, post) {
  const service = new Service(models), stopped = new Set();
  return async ({ id, method, args }) => {
    if (method === "stop") return stopped.add(id);
    try {
      const result = await service[method](...args, text => post({ id, text }), () => stopped.has(id));
      post({ id, result });
    } catch (error) {
      post({ id, error: error.message });
    }
  };
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), character => character.charCodeAt(0));
}

// Base64 of zlib's format -> the bytes, an ArrayBuffer.
function inflate(base64) {
  const inflated = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(inflated).arrayBuffer();
}

// Until the messages that wait have been taken.
function pause() {
  return new Promise(resolve => setTimeout(resolve));
}

// In a worker, the first message brings the models.
if (typeof WorkerGlobalScope !== "undefined") {
  self.onmessage = ({ data }) => {
    const answer = serve(data, message => postMessage(message));
    self.onmessage = event => answer(event.data);
  };
}
