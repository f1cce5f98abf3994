// tour.js: five steps through the page. Top-level names: tour.

const TOUR = [
  ["write", "Let it write",
    "This is the model itself, no recording: press Write, and it continues the prompt."],
  ["next", "Turn the knobs",
    "Each character is drawn from these probabilities. At a low temperature the most likely one takes all."],
  ["surprise", "See what surprises it",
    "Colored characters came unexpectedly. Put a text of your own into the field above, or misspell a word."],
  ["attention", "Follow its attention",
    "Choose a head, then a character: the lines lead to the characters from which it gathers what it needs."],
  ["film", "Watch it learn",
    "Press Play: the same model after 1, 2, 4, 8 and more steps of training. Enjoy."],
];
const TOUR_KEY = "minilm-explorer-tour";

// A sandboxed frame may have no storage, and says so with an exception.
function remembered(value) {
  try {
    if (value) localStorage.setItem(TOUR_KEY, value);
    return localStorage.getItem(TOUR_KEY);
  } catch {
    return null;
  }
}

function tour(page) {
  const card = page.find("tour");
  // A page without a film ends with the parts that can be switched off.
  const last = ["switches", "Take it apart",
    "Switch a head or an MLP off and see what the model misses without it."];
  const steps = TOUR.map(step => (page.find(step[0]).hidden ? last : step));
  let at = 0;

  function show(step, { focus = true } = {}) {
    for (const [id] of steps) page.find(id).classList.remove("toured");
    at = step;
    card.hidden = step < 0 || step >= steps.length;
    if (card.hidden) {
      remembered("seen");
      return page.find("start-tour").focus({ preventScroll: true });
    }
    const [id, title, text] = steps[step];
    page.find("tour-title").textContent = `${step + 1} of ${steps.length}: ${title}`;
    page.find("tour-text").textContent = text;
    page.find("tour-back").disabled = step === 0;
    page.find("tour-next").textContent = step === steps.length - 1 ? "Done" : "Next";
    page.find(id).classList.add("toured");
    page.find(id).before(card); // it stands there, or over the page where there is room for that
    // On the first visit, the page stays where it is and keeps the focus: nobody has asked for the tour.
    if (focus) {
      const fixed = getComputedStyle(card).position === "fixed";
      (fixed ? page.find(id) : card).scrollIntoView({ block: "start" });
      card.focus({ preventScroll: true });
    }
  }

  page.find("start-tour").onclick = () => show(0);
  page.find("tour-back").onclick = () => show(at - 1);
  page.find("tour-next").onclick = () => show(at + 1);
  page.find("tour-close").onclick = () => show(-1);
  card.onkeydown = event => {
    if (event.key === "Escape") show(-1);
  };
  if (!remembered()) show(0, { focus: false });
}
