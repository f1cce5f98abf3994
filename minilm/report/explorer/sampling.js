// sampling.js: drawing a character from the model's distribution, as minilm/generation/sampling.py.
// Top-level names: DEFAULTS, checkSettings, limit, distribution, MersenneTwister, Drawer.

// The settings of generation; minilm/generation/config.py says what each does.
const DEFAULTS = { temperature: 0.8, topK: 50, topP: 1, minP: 0, maxNewTokens: 200, seed: 1337 };

// Throws if a value is out of its range.
function checkSettings({ temperature, topK, topP, minP, maxNewTokens, seed }) {
  const finite = temperature >= 0 && temperature < Infinity;
  const shares = topP > 0 && topP <= 1 && minP >= 0 && minP <= 1;
  const counts = [topK, maxNewTokens, seed].every(count => Number.isInteger(count) && count >= 0);
  if (!(finite && shares && counts)) {
    const ranges = "temperature must be at least 0, topP above 0 to 1, minP from 0 to 1";
    throw new Error(`${ranges}, and topK, maxNewTokens and seed whole numbers of at least 0`);
  }
}

// Minus infinity for what must not be drawn, by one limit after the other: (V,) -> (V,).
function limit(logits, { temperature, topK, topP, minP }) {
  const limited = new Float32Array(logits);
  limited[UNKNOWN_ID] = -Infinity; // never drawn: it stands for no text
  if (!((topK > 0 && topK < logits.length) || topP < 1 || minP > 0)) return limited;
  const order = Array.from(limited.keys()).sort((a, b) => limited[b] - limited[a] || a - b);
  const ranked = order.map(id => limited[id] / Math.max(temperature, 1e-30));
  if (topK > 0) ranked.fill(-Infinity, topK);
  const probabilities = softmax(ranked.slice());
  let before = 0; // what the more likely ones have together
  order.forEach((id, rank) => {
    // A character stays if those before it have not reached top_p yet, so the most likely always does.
    const rare = probabilities[rank] < minP * probabilities[0];
    if ((topK > 0 && rank >= topK) || before >= topP || rare) limited[id] = -Infinity;
    before += probabilities[rank];
  });
  return limited;
}

// Probabilities as the model has them, and as they are drawn, after temperature and limits: (V,) -> two (V,).
function distribution(logits, settings) {
  const chosen = { ...DEFAULTS, ...settings };
  const limited = limit(logits, chosen);
  const largest = limited.reduce((a, b) => Math.max(a, b));
  // Less the largest first, which would overflow when divided by a temperature of almost 0.
  const after = Float64Array.from(limited, logit => (logit - largest) / Math.max(chosen.temperature, 1e-30));
  return { before: softmax(new Float64Array(logits)), after: softmax(after) };
}

// Random numbers of 32 bits, those of NumPy's RandomState(seed): "Mersenne Twister: A 623-Dimensionally
// Equidistributed Uniform Pseudo-Random Number Generator" (Matsumoto and Nishimura, 1998).
class MersenneTwister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed % 2 ** 32;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ (last >>> 30)) + i;
    }
    this.index = 624;
  }

  next() {
    if (this.index === 624) this.twist();
    let bits = this.state[this.index++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    return (bits ^ (bits >>> 18)) >>> 0;
  }

  // The next 624 numbers, each from one number's highest bit and the lower 31 of the one after it.
  twist() {
    const { state } = this;
    for (let i = 0; i < 624; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }
}

// Draws characters one after the other; the same seed gives the same ones as `python main.py --generate`.
class Drawer {
  constructor(seed, vocabSize) {
    this.generator = new MersenneTwister(seed);
    this.vocabSize = vocabSize;
  }

  // The id whose logit plus Gumbel noise times the temperature is the largest: a draw from
  // softmax(logits / temperature), the Gumbel-max trick ("A* Sampling", Maddison et al., 2014).
  draw(logits, settings) {
    const limited = limit(logits, settings);
    let drawn = UNKNOWN_ID, largest = -Infinity;
    for (let id = 0; id < this.vocabSize; id++) {
      const uniform = (this.generator.next() + 0.5) / 2 ** 32; // above 0 and below 1
      const noise = Math.fround(-settings.temperature * Math.log(-Math.log(uniform)));
      const noisy = Math.fround(limited[id] + noise);
      if (noisy > largest) [drawn, largest] = [id, noisy];
    }
    return drawn;
  }
}
