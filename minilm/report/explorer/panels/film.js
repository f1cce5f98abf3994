// film.js: the model as it was after more and more steps of training. Top-level names: filmPanel.

const FILM_LENGTH = 160; // characters of a sample
const FILM_PAUSE = 900; // milliseconds that a frame is shown at least, when the film plays
const FILM_TEXT = 32; // characters of the passage whose attention is shown

function filmPanel(page) {
  const [play, slider, prompt, sample, note] =
    ["film-play", "film-frame", "film-prompt", "film-sample", "film-loss-note"].map(page.find);
  const promptNote = page.find("film-note");
  const panel = page.find("film");
  const bars = new Bars(page.find("film-bars"));
  const { film, steps, loss, config, vocabulary, settings, test_text: test } = page.data.models[0];
  const { temperature, top_k: topK, top_p: topP, min_p: minP, seed } = settings;
  const given = { temperature, topK, topP, minP, seed, maxNewTokens: FILM_LENGTH };
  const measured = []; // loss of the passage after each frame, as soon as it is known
  let attention = []; // of the frame that is shown
  let moves = 0; // of the slider, and of what else changes the picture
  let writing = null; // the sample under way
  let playing = null; // the run of the film that goes on, if one does

  // The last frame is the trained model itself, which is not kept twice.
  const frames = film.length + 1;
  const testIds = page.client.encode(test).slice(0, config.block_size + 1);
  const passage = testIds.slice(0, Math.min(FILM_TEXT, config.block_size));
  const stepOf = index => (index < film.length ? film[index].step : steps);
  const stepName = index => stepOf(index).toLocaleString("en");
  const options = index => ({ model: 0, frame: index < film.length ? index : undefined });

  // One frame after the other, in the time that the model has left.
  async function measure() {
    for (let index = 0; index < frames; index++) {
      const nats = (await page.client.surprisal(testIds, options(index))).subarray(1);
      measured[index] = nats.reduce((a, b) => a + b, 0) / nats.length;
      drawLoss();
    }
  }

  // The text comes last and bit by bit, since it takes the longest.
  const show = newest(async move => {
    const { client } = page, { block_size, vocab_size } = config;
    const frame = options(Number(slider.value)), before = latest(prompt.value).slice(-block_size).join("");
    const ids = client.encode(before);
    const next = await client.logits(ids, frame);
    const probabilities = before ? probabilitiesOf(next, ids.length - 1, vocab_size) : [];
    const best = descending(probabilities).slice(0, 8);
    bars.show(best.map(id => ({ character: vocabulary[id], after: probabilities[id] })), { scale: 1 });
    ({ attention } = await client.inside(passage, frame));
    drawHeads();
    sample.replaceChildren(element("b", { textContent: before }));
    if (move !== moves) return;
    if (before) {
      writing = client.generate({ ...given, prompt: before }, text => sample.append(text), frame);
      await writing.done;
    }
    panel.ariaBusy = String(move !== moves);
  });

  // What can be shown at once; the rest follows when the model has computed it.
  function move() {
    writing?.stop();
    const where = `${stepName(Number(slider.value))} of ${stepName(frames - 1)}`;
    page.find("film-step").textContent = where;
    slider.ariaValueText = `step ${where}`;
    drawLoss();
    panel.ariaBusy = "true";
    return show(++moves);
  }

  function describePrompt() {
    promptNote.textContent = prompt.value
      ? describeText(prompt.value, vocabulary, config.block_size, "it begins with the prompt")
      : "Write a prompt of at least one character.";
  }

  function pause() {
    playing = null;
    play.textContent = "Play";
  }

  async function run() {
    if (playing) return pause();
    const mine = (playing = {});
    play.textContent = "Pause";
    if (Number(slider.value) === frames - 1) slider.value = 0;
    while (playing === mine) {
      await Promise.all([move(), new Promise(done => setTimeout(done, FILM_PAUSE))]);
      if (playing !== mine) return;
      if (Number(slider.value) === frames - 1) return pause();
      slider.value = Number(slider.value) + 1;
    }
  }

  function drawHeads() {
    showThumbnails(page.find("film-heads"), attention, passage.length);
  }

  function drawLoss() {
    const chart = page.find("film-loss");
    const [width, height, left, bottom] = [chart.clientWidth, 230, 34, 34];
    const index = Number(slider.value);
    const points = measured.map((value, i) => [stepOf(i), value]);
    const curve = of =>
      loss.step.map((step, i) => [step, of[i]]).filter(([, value]) => Number.isFinite(value));
    const curves = { train: curve(loss.train_loss), val: curve(loss.val_loss) };
    const values = [...points, ...curves.train, ...curves.val].map(point => point[1]);
    // Whoever guesses has a loss of ln V; a training far beyond it would leave no room for the rest.
    const [low, high] = [Math.floor(Math.min(...values, 2)), Math.ceil(Math.log(config.vocab_size) + 0.3)];
    // Steps on a logarithmic axis, as the frames double. Training may have gone on after the model it kept.
    const last = Math.max(2, steps, ...loss.step);
    const x = step => left + 6 + ((width - left - 16) * Math.log(step)) / Math.log(last);
    const y = value => 8 + ((height - bottom - 8) * (high - value)) / (high - low);
    const path = of => of.map(([step, value], i) => `${i ? "L" : "M"}${x(step)} ${y(value)}`).join("");
    const line = (name, d) => drawing("path", { class: name, d });
    const label = (x, y, text, anchor) => drawing("text", { x, y, "text-anchor": anchor }, text);
    const ticks = [1, 10, 100, 1000, 10000, 100000].filter(step => step <= last);
    const lines = Array.from({ length: high - low + 1 }, (_, i) => low + i);
    const told = index in measured
      ? `The loss of a passage of the test split after step ${stepName(index)}: ` +
        `${measured[index].toFixed(2)} nats per character. `
      : "";
    note.textContent =
      `${told}Dots: that passage, measured in this page. Lines: the losses that training reported, ` +
      "dashed for its own text.";
    const name = `Loss in nats per character by step. ${told}`;
    chart.replaceChildren(drawing("svg", { width, height, role: "img", "aria-label": name },
      ...lines.map(value => line("grid", `M${left} ${y(value)}H${width}`)),
      ...lines.map(value => label(left - 6, y(value) + 4, `${value}`, "end")),
      ...ticks.map(step => label(x(step), height - bottom + 18, step.toLocaleString("en"), "middle")),
      label(width - 2, height - 2, "step", "end"),
      line("marker", `M${x(stepOf(index))} 4V${height - bottom}`),
      line("train", path(curves.train)),
      line("val", path(curves.val)),
      line("measured", path(points)),
      ...points.map(([step, value], i) => {
        const now = i === index;
        return drawing("circle", { cx: x(step), cy: y(value), r: now ? 5 : 3, class: now ? "now" : "" });
      }),
    ));
  }

  prompt.value = page.data.models[0].prompt;
  headThumbnails(page.find("film-heads"), config);
  if (stepOf(0) > 1) {
    page.find("film-beginning").textContent =
      ` Those from before step ${stepName(0)} are left out, to keep it small.`;
  }
  slider.max = frames - 1;
  slider.value = frames - 1;
  slider.oninput = () => {
    pause();
    move();
  };
  play.onclick = run;
  prompt.oninput = () => {
    pause();
    describePrompt();
    move();
  };
  return {
    refresh() {
      describePrompt();
      move();
      measure();
    },
    redraw() {
      drawLoss();
      drawHeads();
    },
  };
}
