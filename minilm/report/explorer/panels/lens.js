// lens.js: what the model would say after each block. Top-level names: lensPart.

const COLUMN = 30; // pixels of a character's column

function lensPart(page) {
  const table = page.find("lens-table");

  function showPlace(view, position) {
    const { characters, start, lens, size } = view;
    const fit = Math.floor((table.parentElement.clientWidth - 110) / COLUMN);
    const first = Math.max(0, position + 1 - Math.max(6, Math.min(32, fit)));
    const columns = Array.from({ length: position + 1 - first }, (_, index) => first + index);
    const line = (name, className, cell) =>
      element("tr", { className }, element("th", { scope: "row", textContent: name }), ...columns.map(cell));
    const character = index =>
      element("td", {
        textContent: index < characters.length ? visible(characters[index]) : "",
        ariaLabel: index < characters.length ? spoken(characters[index]) : "not known",
      });
    const said = lens.map((logits, layer) => {
      const end = layer === lens.length - 1 ? ", the end" : "";
      const name = layer ? `block ${layer}${end}` : "embedding";
      return line(name, "said", column => {
        const probabilities = probabilitiesOf(logits, column, size);
        const best = probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
        const sign = page.current.vocabulary[best];
        const right = sign === characters[start + column + 1];
        const cell = element("td", {
          textContent: visible(sign),
          title: `${spoken(sign)}: ${percent(probabilities[best])}${right ? ", right" : ""}`,
          className: right ? "right" : "",
        });
        cell.style.setProperty("--share", `${80 * probabilities[best]}%`);
        return cell;
      });
    });
    table.replaceChildren(
      element("tbody", {}, line("reads", "", column => character(start + column)), ...said,
        line("came next", "", column => character(start + column + 1))),
    );
  }

  return { showPlace };
}
