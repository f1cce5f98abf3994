// tokenizer.js: characters to ids and back, as minilm/data/tokenizer.py.
// Top-level names: UNKNOWN_ID, CharTokenizer.

const UNKNOWN_ID = 0;

class CharTokenizer {
  // `vocabulary`: the characters by id; that of id 0 is U+FFFD, Unicode's own sign for what cannot be shown.
  constructor(vocabulary) {
    this.vocabulary = vocabulary;
    this.idOf = new Map(vocabulary.map((character, id) => [character, id]));
  }

  get size() {
    return this.vocabulary.length;
  }

  // One id for each code point, as Python counts characters, not for each of JavaScript's 16-bit units.
  encode(text) {
    return Array.from(text, character => this.idOf.get(character) ?? UNKNOWN_ID);
  }

  decode(ids) {
    return Array.from(ids, id => {
      if (!(id in this.vocabulary)) throw new Error(`ids must be from 0 to ${this.size - 1}, found ${id}`);
      return this.vocabulary[id];
    }).join("");
  }
}
