// switches.js: the model without some of its heads and MLPs. Top-level names: switchesPart.

function switchesPart(page, { switched, off }) {
  const bars = new Bars(page.find("parts-bars"));
  let whole = null; // loss and next characters with all parts, of the text that is shown

  // The mean of the text's nats, and the distribution of what follows it.
  function result({ nats, logits, time, size }) {
    const scored = nats.filter(value => !Number.isNaN(value));
    return {
      loss: scored.reduce((a, b) => a + b, 0) / scored.length,
      next: probabilitiesOf(logits, time - 1, size),
    };
  }

  function update() {
    const boxes = [...page.find("parts").querySelectorAll("input")].filter(box => !box.checked);
    const places = boxes.map(({ dataset: { layer, head } }) => [Number(layer), head && Number(head)]);
    off.heads = places.filter(([, head]) => head !== undefined);
    off.mlps = places.filter(([, head]) => head === undefined).map(([layer]) => layer);
    switched();
  }

  function part(layer, head) {
    const box = element("input", { type: "checkbox", checked: true, onchange: update });
    box.dataset.layer = layer;
    if (head !== undefined) box.dataset.head = head;
    const name = head === undefined ? "MLP" : `Head ${head + 1}`;
    box.ariaLabel = `Layer ${layer + 1}, ${name}`;
    return element("label", { className: "switch" }, box, name);
  }

  page.find("parts-on").onclick = () => {
    for (const box of page.find("parts").querySelectorAll("input")) box.checked = true;
    update();
  };
  return {
    refresh() {
      const { num_layers: layers, num_heads: heads } = page.current.config;
      page.find("parts").replaceChildren(...Array.from({ length: layers }, (_, layer) =>
        element("div", { className: "layer" },
          element("span", { className: "layer-name", textContent: `Layer ${layer + 1}` }),
          ...Array.from({ length: heads }, (_, head) => part(layer, head)),
          part(layer))));
    },

    async load(view) {
      if (!off.heads.length && !off.mlps.length) {
        whole = result(view);
        return;
      }
      const { model, client } = page;
      const ids = client.encode(view.characters.join(""), model);
      whole = result({
        ...view,
        nats: await client.surprisal(ids, { model }),
        logits: await client.logits(view.ids, { model }),
      });
    },

    show(view) {
      const now = result(view);
      const count = off.heads.length + off.mlps.length;
      const change = now.loss - whole.loss;
      const [loss, before] = [now.loss, whole.loss].map(value => `${value.toFixed(3)} nats per character`);
      page.find("parts-loss").textContent = Number.isNaN(now.loss)
        ? "One character alone has no loss."
        : count
          ? `Loss ${loss} with ${count} ${count > 1 ? "parts" : "part"} off, ${before} with all on: ` +
            `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(3)}.`
          : `Loss ${loss} with all parts on.`;
      const best = descending(now.next.map((probability, id) => Math.max(probability, whole.next[id])));
      bars.show(best.slice(0, 8).map(id => ({
        character: page.current.vocabulary[id], before: whole.next[id], after: now.next[id],
      })));
    },
  };
}
