// worker.js: answers client.js, on a thread of its own or, where the browser forbids that, on the page's.
// Top-level names: WEIGHTS_KEPT, SLICE, Service, serve, decode, decodeFrame, assemble, size, bytesOf, inflate,
// pause.

const WEIGHTS_KEPT = 3e7; // of decoded frames of the film, with four bytes each
const SLICE = 15; // milliseconds of work, after which other requests have their turn

// Each public method answers the client's of that name.
class Service {
  constructor(models) {
    this.models = models; // as in the page's data
    this.tokenizers = models.map(model => new CharTokenizer(model.vocabulary));
    this.trained = []; // promises of MiniGPTs, by model
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

  // Nats for each character. Overlapping windows score each once, with at least half of block_size before it
  // where there are so many (minilm/evaluation/scoring.py).
  async surprisal(ids, options) {
    const model = await this.model(options), { block_size, vocab_size } = model.config;
    const nats = new Float32Array(ids.length).fill(NaN), predictions = ids.length - 1;
    const width = Math.min(block_size, predictions), stride = block_size - Math.floor(block_size / 2);
    for (let scored = 0; scored < predictions; ) {
      const end = Math.min(predictions, scored ? scored + stride : width), start = end - width;
      const skipped = scored - start; // scored by the window before; here they are context
      const { logits } = model.forward(ids.slice(start, end), { off: options.off, skipped });
      for (let t = scored; t < end; t++) {
        const probabilities = softmax(new Float64Array(row(logits, t - scored, vocab_size)));
        nats[t + 1] = -Math.log(probabilities[ids[t + 1]]);
      }
      scored = end;
      await pause();
    }
    return nats;
  }

  async generate(settings, options, onText, stopped) {
    const chosen = { ...DEFAULTS };
    for (const key in settings) if (settings[key] !== undefined) chosen[key] = settings[key];
    checkSettings(chosen);
    if (typeof chosen.prompt !== "string" || !chosen.prompt) {
      throw new Error("the prompt is empty; give at least one character to continue");
    }
    const prompt = chosen.prompt.replace(/\r\n?/g, "\n"); // as training has read line ends
    const model = await this.model(options), tokenizer = this.tokenizers[options.model ?? 0];
    const drawer = new Drawer(chosen.seed, model.config.vocab_size);
    const decoder = new Decoder(model, options.off);
    let text = prompt, sent = text.length, since = 0; // so that the first character is sent at once
    let logits = decoder.prefill(tokenizer.encode(prompt));
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

  // A promise of the trained model, or of a frame of its film.
  model({ model = 0, frame }) {
    const data = this.models[model], key = `${model} ${frame}`;
    if (frame === undefined) return (this.trained[model] ??= decode(data));
    const found = this.frames.get(key) ?? decodeFrame(data, frame);
    this.frames.delete(key); // and comes last again
    this.frames.set(key, found);
    const weights = Object.values(data.tensors).reduce((sum, { shape }) => sum + size(shape), 0);
    if (this.frames.size * weights > WEIGHTS_KEPT) this.frames.delete(this.frames.keys().next().value);
    return found;
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

// The page's data of a model -> MiniGPT with its weights, float32.
async function decode(data) {
  return assemble(data, new Float32Array(await inflate(data.weights)));
}

// The same of a frame, int8: its differences from the next one, and so on to the last; each is inflated once.
// Each row of a matrix, and each vector, has a scale of its own.
async function decodeFrame(data, frame) {
  const parts = await Promise.all(data.film.slice(frame).map(part => (part.levels ??= inflate(part.weights))));
  const numbers = new Float32Array(parts[0].byteLength);
  for (const part of parts) new Int8Array(part).forEach((level, i) => { numbers[i] += level; });
  const scaleOf = new Float32Array(bytesOf(data.film[frame].scales).buffer);
  let scale = 0;
  for (const { shape, offset } of Object.values(data.tensors)) {
    const columns = shape.at(-1), end = offset + size(shape);
    for (let from = offset; from < end; from += columns, scale++) {
      for (let i = from; i < from + columns; i++) numbers[i] *= scaleOf[scale];
    }
  }
  return assemble(data, numbers);
}

function assemble({ config, tensors }, numbers) {
  const parts = Object.entries(tensors).map(([name, { shape, offset }]) =>
    [name, numbers.subarray(offset, offset + size(shape))]);
  return new MiniGPT(config, Object.fromEntries(parts));
}

function size(shape) {
  return shape.reduce((a, b) => a * b);
}

function bytesOf(base64) {
  const characters = atob(base64), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
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
