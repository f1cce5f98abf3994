// write.js: the panels Write and The next character. Top-level names: writePanel.

function writePanel(page) {
  const [prompt, note, start, on, stop, another] =
    ["prompt", "write-note", "write-start", "write-on", "write-stop", "write-seed"].map(page.find);
  const [length, seed, temperature, topK, topP, minP] =
    ["length", "seed", "temperature", "top-k", "top-p", "min-p"].map(page.find);
  const text = new CharacterText(page.find("written"), "The text; the arrow keys choose a character", index =>
    goTo(index === place ? characters.length : index)); // chosen a second time, it leads back to the end
  const bars = new Bars(page.find("next-bars"), take);
  let characters = []; // the prompt and what was written
  let prompted = 0; // how many of them are the prompt
  let place = 0; // which character the bars stand for: the next one, or one to go back to
  let writing = null; // the running generation
  let before = []; // the characters after which the bars stand, and the logits of what follows them
  let logits = null;

  function settings() {
    const all = Number(topK.max);
    return {
      temperature: Number(temperature.value),
      topK: Number(topK.value) === all ? 0 : Number(topK.value),
      topP: Number(topP.value),
      minP: Number(minP.value),
      seed: Math.max(0, Math.min(2 ** 32 - 1, Math.floor(Number(seed.value)))),
    };
  }

  function show() {
    text.show(characters, (span, index) => {
      span.classList.toggle("prompt", index < prompted);
      span.classList.toggle("faded", index > place);
      span.classList.toggle("unknown", !page.knows(characters[index]));
    });
    text.choose(place < characters.length ? place : -1);
    on.textContent = place < characters.length ? "Write on from here" : "Write on";
    start.disabled = another.disabled = !prompt.value;
    on.disabled = !place;
    stop.disabled = writing === null;
  }

  // Write after `before`, a text. A generation that still runs has been left behind: its text is not shown.
  async function write(before) {
    writing?.stop();
    characters = Array.from(before);
    place = characters.length;
    const maxNewTokens = Math.max(1, Math.min(5000, Math.round(Number(length.value)) || 1));
    length.value = maxNewTokens;
    seed.value = settings().seed;
    const mine = page.client.generate(
      { ...settings(), prompt: before, maxNewTokens },
      added => {
        if (writing !== mine) return;
        characters = characters.concat(Array.from(added));
        place = characters.length;
        show();
        page.find("written").scrollTop = page.find("written").scrollHeight;
      },
      { model: page.model },
    );
    writing = mine;
    page.find("next").ariaBusy = "true"; // until `goTo` has read what comes after the text
    show();
    try {
      await mine.done;
    } finally {
      if (writing === mine) goTo(characters.length);
    }
  }

  function goTo(index) {
    writing?.stop();
    writing = null;
    place = index;
    show();
    page.find("next").ariaBusy = "true";
    readNext();
  }

  function take(character) {
    prompted = Math.min(prompted, before.length);
    characters = [...before, character];
    goTo(characters.length);
  }

  const readNext = newest(async () => {
    const [model, size] = [page.model, page.current.vocabulary.length];
    const read = characters.slice(0, place);
    const ids = page.client.encode(read.join(""), model).slice(-page.current.config.block_size);
    const all = ids.length ? await page.client.logits(ids, { model }) : null;
    if (model !== page.model) return;
    before = read;
    logits = all && all.slice(-size);
    page.find("next").ariaBusy = String(place !== before.length);
    showNext();
  });

  // Called at each move of a slider: what the model said is kept, so only the settings are computed.
  function showNext() {
    const vocabulary = page.current.vocabulary;
    const values = settings();
    page.find("temperature-value").textContent = values.temperature || "0, the most likely";
    page.find("top-k-value").textContent = values.topK || "all";
    page.find("top-p-value").textContent = values.topP === 1 ? "1, all" : values.topP;
    page.find("min-p-value").textContent = values.minP || "0, none";
    const context = before.slice(-12).map(visible).join("");
    page.find("next-place").replaceChildren(
      ...(logits ? ["After ", element("code", { className: "context", textContent: context }), ":"]
        : ["Nothing comes before the first character, so the model has no distribution for it."]),
    );
    page.find("next-rest").textContent = "";
    if (!logits) return bars.show([]);

    const probabilities = distribution(logits, values);
    const ranked = descending(probabilities.before);
    // Which limit cuts a character off: the first in the order of `limit` that does.
    const byTopK = distribution(logits, { ...values, topP: 1, minP: 0 }).after;
    const byTopP = distribution(logits, { ...values, minP: 0 }).after;
    const cutBy = id => {
      if (probabilities.after[id] > 0) return undefined;
      if (id === UNKNOWN_ID) return "never drawn";
      if (values.temperature === 0) return "not first";
      return byTopK[id] === 0 ? "top_k" : byTopP[id] === 0 ? "top_p" : "min_p";
    };
    const rows = ranked.slice(0, 14).map(id => ({
      character: vocabulary[id], before: probabilities.before[id], after: probabilities.after[id], cut: cutBy(id),
    }));
    bars.show(rows, { marked: characters[before.length] ?? null });
    const share = ranked.slice(14).reduce((sum, id) => sum + probabilities.before[id], 0);
    const left = ranked.filter(id => probabilities.after[id] > 0).length;
    page.find("next-rest").textContent =
      `${left} of ${vocabulary.length} characters can be drawn. ` +
      (ranked.length > 14 ? `Not shown are ${ranked.length - 14}, together ${percent(share)}.` : "");
  }

  function restart() {
    characters = latest(prompt.value);
    prompted = characters.length;
    const size = page.current.config.block_size;
    note.textContent = prompt.value
      ? describeText(prompt.value, page.current.vocabulary, size, "it begins with the prompt")
      : "Write a prompt of at least one character.";
    goTo(characters.length);
  }

  function writePrompt() {
    const before = latest(prompt.value);
    prompted = before.length;
    return write(before.join(""));
  }

  prompt.oninput = restart;
  start.onclick = writePrompt;
  on.onclick = () => write(characters.slice(0, place).join(""));
  stop.onclick = () => goTo(characters.length);
  another.onclick = () => {
    seed.value = Math.floor(Math.random() * 10000);
    writePrompt();
  };
  for (const slider of [temperature, topK, topP, minP]) slider.oninput = showNext;

  function refresh() {
    const { vocabulary } = page.current;
    topK.max = vocabulary.length;
    if (Number(topK.value) > vocabulary.length) topK.value = vocabulary.length;
    restart();
  }

  const given = page.current.settings;
  topK.max = page.current.vocabulary.length;
  prompt.value = page.current.prompt;
  [length.value, seed.value, temperature.value] = [given.max_new_tokens, given.seed, given.temperature];
  topK.value = given.top_k || topK.max;
  [topP.value, minP.value] = [given.top_p, given.min_p];
  return { refresh, written: () => characters.join("") };
}
