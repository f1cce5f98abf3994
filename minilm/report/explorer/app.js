// app.js: reads the page's data, starts the model and the panels. It comes last.
// Top-level names: data, client, page, describeModel, report, compared, needs, write, panels, once, redraw.

const data = JSON.parse(document.getElementById("data").textContent);
const client = new Client(data.models, document.getElementById("engine").textContent);
window.minilm = publicInterface(client);

// What the panels share.
const page = {
  data,
  client,
  model: 0, // the one that is shown, where two are compared
  get current() {
    return data.models[this.model];
  },
  knows: character => client.tokenizers[page.model].idOf.has(character),
  find: id => document.getElementById(id),
};

function describeModel() {
  const { config, tensors, dataset, steps } = page.current;
  const sizes = Object.values(tensors).map(({ shape }) => shape.reduce((a, b) => a * b, 1));
  const parameters = sizes.reduce((a, b) => a + b, 0).toLocaleString("en");
  const plural = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;
  const shape = `${plural(config.num_layers, "layer")} of ${plural(config.num_heads, "attention head")}`;
  page.find("summary").textContent =
    `A GPT (generative pre-trained transformer) with ${parameters} parameters in ${shape}` +
    (steps ? `, trained for ${steps.toLocaleString("en")} steps` : "") + (dataset ? ` on ${dataset}` : "") +
    ". It runs in this page, on your own computer: nothing that you type leaves it.";
}

// A browser that lacks what the page needs says what; a page that stays empty would say nothing.
function report(event) {
  page.find("problem").hidden = false;
  const { message } = event.reason ?? event.error ?? event;
  page.find("problem").textContent = `Something went wrong: ${message}`;
}
window.addEventListener("unhandledrejection", report);
window.addEventListener("error", report);

const compared = data.models.length > 1;
const needs = { film: !compared && data.models[0].film.length > 0, compare: compared };
for (const part of document.querySelectorAll("[data-needs]")) part.hidden = !needs[part.dataset.needs];

const write = writePanel(page);
const panels = [write, insidePanel(page, write.written)];
const once = [needs.film && filmPanel(page), needs.compare && comparePanel(page)].filter(Boolean);

if (compared) {
  page.find("model-choice").hidden = false;
  data.models.forEach(({ name }) => page.find("model").append(element("option", { textContent: name })));
  page.find("model").onchange = () => {
    page.model = page.find("model").selectedIndex;
    describeModel();
    for (const panel of panels) panel.refresh();
  };
}

describeModel();
for (const panel of panels) panel.refresh();
// MLflow shows a copy of the page in a frame, where no other page lies beside it.
if (location.protocol !== "blob:") {
  for (const [name, address] of Object.entries(data.links)) {
    page.find("links").append(element("a", { href: address, textContent: name }), " ");
  }
}
// In that frame a link into the page itself is forbidden: the way is gone by script.
for (const link of document.querySelectorAll("nav a")) {
  const panel = page.find(link.getAttribute("href").slice(1));
  panel.tabIndex = -1;
  link.onclick = event => {
    event.preventDefault();
    panel.scrollIntoView();
    panel.focus({ preventScroll: true });
  };
}
// What is far below is computed when it comes near, so that the first characters are not kept waiting.
for (const [index, section] of [needs.film && "film", needs.compare && "compare"].filter(Boolean).entries()) {
  const watcher = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    watcher.disconnect();
    once[index].refresh();
  }, { rootMargin: "600px" });
  watcher.observe(page.find(section));
}

// Drawings have the size and the colors that the page had when they were made.
const redraw = () => [...panels, ...once].forEach(panel => panel.redraw?.());
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
tour(page);
