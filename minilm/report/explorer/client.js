// client.js: what the page asks the model, as promises. The work is done by worker.js, off the main thread
// where the browser allows it. Top-level names: Client, publicInterface.

// All methods take `options`:
//   model  which of the page's models, 0 unless two are compared
//   frame  index into its film; left out, the trained model
//   off    {heads: [[layer, head], ...], mlps: [layer, ...]}: these contribute nothing
class Client {
  // `models` as in the page's data; `source` is the text of the scripts that the worker runs.
  constructor(models, source) {
    this.tokenizers = models.map(model => new CharTokenizer(model.vocabulary));
    this.pending = new Map(); // requests without a result yet, by id
    this.requests = 0;
    this.send = this.startWorker(models, source);
    this.ready = this.request("tensor", ["token_embedding.weight", {}]).then(() => {}); // all is decoded
  }

  // Ids, one for each character (code point); 0 where the vocabulary lacks it.
  encode(text, model = 0) {
    return this.tokenizers[model].encode(text);
  }

  decode(ids, model = 0) {
    return this.tokenizers[model].decode(ids);
  }

  // Promise of a Float32Array, (T, V), for T ids of at most block_size.
  logits(ids, options = {}) {
    return this.request("logits", [[...ids], options]);
  }

  // Promise of {logits (T, V), attention: (H, T, T) of each layer, lens: logits (T, V) before each block and
  // after the last}.
  inside(ids, options = {}) {
    return this.request("inside", [[...ids], options]);
  }

  // Promise of nats for each id of a text of any length, a Float32Array; nothing comes before the first: NaN.
  surprisal(ids, options = {}) {
    return this.request("surprisal", [[...ids], options]);
  }

  // Promise of a Float32Array, such as of "token_embedding.weight", (V, C).
  tensor(name, options = {}) {
    return this.request("tensor", [name, options]);
  }

  // Write text; `settings` are `prompt` and those of DEFAULTS in sampling.js. onText gets the new characters,
  // a few at a time. Returns {done, a promise of the text, prompt first; stop(), after which it follows
  // soon}.
  generate(settings, onText, options = {}) {
    const done = this.request("generate", [settings, options], onText);
    const id = this.requests;
    return { done, stop: () => this.send({ id, method: "stop" }) };
  }

  request(method, args, onText) {
    const message = { id: ++this.requests, method, args };
    return new Promise((resolve, reject) => {
      this.pending.set(message.id, { message, resolve, reject, onText });
      this.send(message);
    });
  }

  receive({ id, text, result, error }) {
    const request = this.pending.get(id);
    if (text !== undefined) return request.onText?.(text);
    this.pending.delete(id);
    if (error === undefined) request.resolve(result);
    else request.reject(new Error(error));
  }

  // Returns a function that sends a message to the worker, or to the same code on this thread.
  startWorker(models, source) {
    const here = () => serve(models, message => this.receive(message));
    try {
      const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
      worker.onmessage = event => this.receive(event.data);
      // Some policies forbid a worker only when it is loaded: what was asked until then is asked again.
      worker.onerror = () => {
        worker.terminate();
        this.send = here();
        for (const { message } of this.pending.values()) this.send(message);
      };
      worker.postMessage(models);
      return message => worker.postMessage(message);
    } catch {
      return here();
    }
  }
}

// `window.minilm`, for the browser's console and for tests: plain arrays, and the first model only.
function publicInterface(client) {
  const size = client.tokenizers[0].size;
  return {
    ready: client.ready,
    encode: text => client.encode(text),
    decode: ids => client.decode(ids),
    // One row of V numbers for each id, of at most block_size.
    logits: async ids => {
      const logits = await client.logits(ids);
      return Array.from(ids, (_, row) => [...logits.subarray(row * size, (row + 1) * size)]);
    },
    // {prompt, maxNewTokens, temperature, topK, topP, minP, seed} -> the text, prompt first.
    generate: settings => client.generate(settings).done,
  };
}
