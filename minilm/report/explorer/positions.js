// positions.js: how attention knows about order, as minilm/model/positions.py.
// Top-level names: rotationFrequencies, rotate, sinusoidalTable, alibiSlopes.

// 1 / 10000^(2i/channels) for each pair i of channels: the angle that one more position adds.
function rotationFrequencies(channels) {
  const exponents = Float32Array.from({ length: Math.ceil(channels / 2) }, (_, i) => (-2 * i) / channels);
  return exponents.map(exponent => 10000 ** exponent);
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

// Sines and cosines of the position, taking turns: (length, channels).
function sinusoidalTable(length, channels) {
  const frequencies = rotationFrequencies(channels);
  return new Float32Array(length * channels).map((_, i) => {
    const channel = i % channels, angle = Math.floor(i / channels) * frequencies[channel >> 1];
    return channel % 2 ? Math.cos(angle) : Math.sin(angle);
  });
}

// By how much each head's scores fall per character of distance, (H,): the sequence of the next lower power
// of two, filled up with every second slope of the next higher one.
function alibiSlopes(heads) {
  const lower = 2 ** Math.floor(Math.log2(heads));
  return Float32Array.from({ length: heads }, (_, head) =>
    head < lower ? 2 ** ((-8 / lower) * (head + 1)) : 2 ** ((-4 / lower) * (2 * (head - lower) + 1)));
}
