// compare.js: the same text through two models. Top-level names: comparePanel.

function comparePanel(page) {
  const [input, note] = ["compare-text", "compare-note"].map(page.find);
  const { models } = page.data;
  const texts = models.map((model, index) => {
    const strip = element("div", { className: "characters", id: `compare-text-${index}` });
    const loss = element("p", { className: "readout" });
    const name = element("h3", { textContent: model.name });
    page.find("compare-models").append(element("div", {}, name, loss, strip));
    return { strip: new CharacterText(strip, `Surprise of ${model.name}`, choose), loss };
  });
  const difference = new CharacterText(page.find("compare-difference"), "Where they differ", choose);
  page.find("compare-legend").append(
    ...models.map(({ name }, index) => {
      const swatch = element("i", { className: index ? "swatch" : "swatch first" });
      return element("span", {}, swatch, `${name} expected it more`);
    }),
  );

  function choose(index) {
    for (const strip of [difference, ...texts.map(({ strip }) => strip)]) strip.choose(index);
  }

  const read = newest(async () => {
    const characters = latest(input.value);
    note.textContent = models
      .map(model => describeText(input.value, model.vocabulary, Infinity, ""))
      .map((problem, index) => problem && `${models[index].name}: ${problem}`).filter(Boolean).join(" ");
    page.find("compare-result").hidden = characters.length < 2;
    if (characters.length < 2) return note.append(" Write a text of at least two characters.");
    const nats = [];
    for (const model of models.keys()) {
      nats.push(await page.client.surprisal(page.client.encode(characters.join(""), model), { model }));
    }
    texts.forEach(({ strip, loss }, model) => {
      strip.show(characters, (span, index) => {
        const bits = nats[model][index] / Math.LN2 || 0;
        span.style.setProperty("--share", `${(100 * Math.min(bits, MOST_BITS)) / MOST_BITS}%`);
        span.title = `${spoken(characters[index])}: ${bits.toFixed(1)} bits`;
      });
      const mean = nats[model].subarray(1).reduce((a, b) => a + b, 0) / (characters.length - 1);
      loss.textContent = `Loss ${mean.toFixed(3)} nats, ${(mean / Math.LN2).toFixed(3)} bits per character`;
    });
    // In bits; above 0 where the first model expected the character more.
    const gain = characters.map((_, index) => (nats[1][index] - nats[0][index]) / Math.LN2 || 0);
    difference.show(characters, (span, index) => {
      span.style.setProperty("--share", `${Math.min(100, 20 * Math.abs(gain[index]))}%`);
      span.classList.toggle("first", gain[index] > 0);
      span.title = `${spoken(characters[index])}: ${Math.abs(gain[index]).toFixed(1)} bits`;
    });
    const most = descending(gain.map(Math.abs)).filter(index => index).slice(0, 8);
    const names = ["Character", "after", ...models.map(model => model.name)];
    const code = textContent => element("code", { textContent });
    const rows = most.map(index =>
      element("tr", {},
        element("th", { scope: "row" }, code(visible(characters[index]))),
        element("td", {}, code(characters.slice(Math.max(0, index - 12), index).map(visible).join(""))),
        ...nats.map(of =>
          element("td", { className: "number", textContent: percent(Math.exp(-of[index])) }))));
    page.find("compare-table").replaceChildren(
      element("thead", {}, element("tr", {}, ...names.map(name => element("th", { textContent: name })))),
      element("tbody", {}, ...rows));
  });

  input.oninput = read;
  input.value = models[0].test_text.slice(0, 400);
  return { refresh: read };
}
