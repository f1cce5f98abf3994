// neighbors.js: which characters have similar embeddings. Top-level names: neighborsPart.

function neighborsPart(page) {
  const choice = page.find("neighbor-of");
  const bars = new Bars(page.find("neighbor-bars"), character => {
    choice.value = page.current.vocabulary.indexOf(character);
    show();
  }, "Choose");

  const show = newest(async () => {
    const { vocabulary, config: { embed_dim: width } } = page.current;
    const rows = await page.client.tensor("token_embedding.weight", { model: page.model });
    const row = id => rows.subarray(id * width, (id + 1) * width);
    const product = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    const length = vocabulary.map((_, id) => Math.sqrt(product(row(id), row(id))));
    const of = Number(choice.value);
    // A row of zeros points nowhere: its cosine is 0.
    const cosine = vocabulary.map((_, id) => product(row(of), row(id)) / (length[of] * length[id] || 1));
    const near = descending(cosine).filter(id => id && id !== of).slice(0, 10);
    bars.show(near.map(id => ({
      character: vocabulary[id], after: cosine[id], label: cosine[id].toFixed(2),
    })), { scale: 1 });
  });

  choice.onchange = show;
  return {
    refresh() {
      choice.replaceChildren(...page.current.vocabulary.map((character, id) => {
        const signs = new Set([visible(character), spoken(character)]); // "␣ space"
        return element("option", { value: id, textContent: [...signs].join(" ") });
      }));
      choice.value = Math.max(1, page.current.vocabulary.indexOf("e"));
      show();
    },
    // The chosen character of the text is the one whose neighbors are asked for.
    showPlace({ characters, chosen }) {
      const id = Math.max(UNKNOWN_ID, page.current.vocabulary.indexOf(characters[chosen]));
      if (id === Number(choice.value)) return;
      choice.value = id;
      show();
    },
  };
}
