"use strict";

/* The page "Turn the key yourself": what the reader sees and turns. The models are engine.js's.
   made.js has set `locksmithMade`: the header of the exported models, or null where there are none,
   and pass@k as results/facts.csv has it. A model's script puts its weights into
   `locksmithWeights` when the model is first used. */
const locksmithWeights = {};

const locksmith = (() => {
  const { header, pass_at_k: curves } = locksmithMade;
  const SAMPLES = 50, SLOTS = 8, PAUSE = 90;  // milliseconds a token
  const NAMES = { base: "the base", twin: "the twin", thinking: "the RL model" };
  const $ = (name) => document.getElementById(`locksmith-${name}`);
  const percents = (...x) => {  // as `locksmith.book.formats.percents`
    const [value, low, high] = x.map((share) => Math.round(100 * share));
    return `${value} % [${low}, ${high}]`;
  };
  const here = new URL(".", document.currentScript.src).href;

  function make(tag, text = "", name = "") {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  // --- models: each is loaded when it is first used ----------------------------------------------

  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

  if (header) {
    for (const [name, rows] of Object.entries(header.vectors.of)) {
      header.vectors.of[name] = new Float32Array(bytes(rows).buffer);
    }
  }
  const engine = header && locksmithEngine(header);

  function script(name) {
    return new Promise((loaded, failed) => {
      const element = Object.assign(document.createElement("script"), {
        src: `${here}${name}.js`, onload: loaded,
        onerror: () => failed(new Error(`${name}.js could not be loaded.`)) });
      document.head.append(element);
    });
  }

  /** float32 numbers of a model; its file holds the high bytes of bfloat16 numbers, then the low. */
  async function numbers(name) {
    await script(name);
    const packed = new Blob([bytes(locksmithWeights[name])]).stream();
    const planes = new Uint8Array(await new Response(
      packed.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
    delete locksmithWeights[name];
    const n = planes.length / 2, bits = new Uint32Array(n);
    for (let i = 0; i < n; i++) bits[i] = planes[i] << 24 | planes[n + i] << 16;
    return new Float32Array(bits.buffer);
  }

  const loading = {};  // name -> promise of its numbers

  /** {name: float32 numbers} of models. */
  async function load(names) {
    for (const name of names) {
      loading[name] ??= numbers(name).catch((error) => {
        delete loading[name];
        throw error;
      });
    }
    const all = await Promise.all(names.map((name) => loading[name]));
    return Object.fromEntries(names.map((name, i) => [name, all[i]]));
  }

  async function nets(setup) {
    const weights = await load(engine.needed(setup));
    return Object.fromEntries(Object.entries(weights).map(([name, x]) => [name, engine.net(x)]));
  }

  // --- many samples, in workers: the page stays alive ---------------------------------------------

  /** What the worker runs beside the engine: samples, and posts each as it ends. */
  function work({ data: { header, weights, setup, prompt, how } }) {
    const engine = locksmithEngine(header), rows = new Map();
    const nets = Object.fromEntries(Object.entries(weights).map(([k, x]) => [k, engine.net(x)]));
    const sampler = new engine.Sampler(nets, setup, prompt, how);
    while (sampler.texts.length) {
      for (const { sample, token, margin, done } of sampler.step()) {
        if (!rows.has(sample)) rows.set(sample, { sample, tokens: [], margins: [] });
        rows.get(sample).tokens.push(token);
        rows.get(sample).margins.push(margin);
        if (done) postMessage(rows.get(sample));
      }
    }
  }

  /** Samples in workers, one a core: a promise of [{sample, tokens, margins}], or null once it is
      cancelled by its `cancel`. ended(row): called with each as it ends. */
  function samples(setup, puzzle, how, ended = () => {}) {
    const workers = [], found = [];
    const several = Math.min(navigator.hardwareConcurrency || 1, 4, how.samples);
    const end = () => workers.forEach((worker) => worker.terminate());
    let cancelled = false, cancel;
    const promise = new Promise((done, failed) => {
      cancel = () => { cancelled = true; end(); done(null); };
      load(engine.needed(setup)).then((weights) => {
        const text = `"use strict"; ${locksmithEngine}; onmessage = ${work};`;
        const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
        for (let i = 0; i < several && !cancelled; i++) {
          const first = Math.round(i * how.samples / several);
          const part = { first, samples: Math.round((i + 1) * how.samples / several) - first };
          const worker = new Worker(address);
          workers.push(worker);
          worker.onerror = (event) => { end(); failed(new Error(event.message || "no worker can be "
            + "started; open the page through a server, such as python -m http.server")); };
          worker.onmessage = ({ data }) => {
            found.push(data);
            ended(data);
            if (found.length < how.samples) return;
            end();
            done(found.sort((a, b) => a.sample - b.sample));
          };
          worker.postMessage({ header, weights, setup, prompt: engine.prompt(puzzle),
                               how: { ...how, ...part } });
        }
      }).catch(failed);
    });
    return Object.assign(promise, { cancel });
  }

  /** Wilson's 95 % interval of a share. */
  function wilson(successes, n) {
    const z2 = 1.959963984540054 ** 2, p = successes / n;
    const middle = (p + z2 / (2 * n)) / (1 + z2 / n);
    const half = Math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n);
    return [middle - half, middle + half];
  }

  // --- what is set up -----------------------------------------------------------------------------

  const chosen = (name) => document.querySelector(`input[name=locksmith-${name}]:checked`).value;

  const setUp = () => ({
    writer: chosen("writer"), decides: $("decides").checked && !$("decides").disabled,
    strength: $("strength").disabled ? 0 : Number($("strength").value), when: chosen("when") });

  function named({ writer, decides, strength, when }) {
    if (decides) return `the RL model decides, ${NAMES[writer]} writes`;
    if (!strength) return `${NAMES[writer]} alone`;
    const times = when === "moments" ? "at the moments" : "at random moments";
    return `${NAMES[writer]}, vectors at strength ${strength} ${times}`;
  }

  const puzzle = () => header.puzzles[$("puzzle").value];
  const stated = ({ numbers, targets }) => `make ${targets.join(" and ")} from ${numbers.join(" ")}`;
  const how = () => ({ seed: Math.floor(Number($("seed").value)) || 0, key: Number($("puzzle").value) });

  /** Puts the page in the state of its switches; the trace so far belonged to another set-up. */
  function settle() {
    const alone = chosen("writer") === "thinking";
    $("decides").disabled = alone;
    $("strength").disabled = alone || $("decides").checked;
    for (const radio of document.getElementsByName("locksmith-when")) {
      radio.disabled = $("strength").disabled;
    }
    const strength = Number($("strength").value);
    $("strength-said").textContent = strength ? String(strength) : "0 (off)";
    $("strength").setAttribute("aria-valuetext", strength ? String(strength) : "off");
    $("setup").textContent = `Now: ${named(setUp())}.`;
    pause();
    edition++;
    sampler = null;
    $("trace").replaceChildren();
    $("verdict").textContent = "";
  }

  function fail(error) {
    pause();
    $("verdict").textContent = `That did not work: ${error.message}`;
  }

  // --- one trace, token by token --------------------------------------------------------------------

  let sampler = null, timer = null, tokens = [], step = "";
  let edition = 0, loads = false;  // how often the set-up has changed; whether models are on their way

  function pause() {
    clearTimeout(timer);
    timer = null;
    $("write").textContent = "Write";
  }

  const say = (text) => { $("said").textContent = text; };

  /** Makes the sampler of the set-up; whether it is still the one that is wanted. */
  async function start() {
    const setup = setUp(), wanted = edition;
    loads = true;
    try {
      const ready = await nets(setup);
      if (wanted !== edition) return false;
      sampler = new engine.Sampler(ready, setup, engine.prompt(puzzle()), how());
    } finally {
      loads = false;
    }
    [tokens, step] = [[], ""];
    $("trace").replaceChildren();
    $("verdict").textContent = "";
    return true;
  }

  /** Writes the next token; whether another one follows. */
  async function advance() {
    if (loads || !sampler && !await start()) return false;
    const [drawn] = sampler.step();
    tokens.push(drawn.token);
    write(drawn);
    if (drawn.done) conclude(drawn.stopped);
    return !drawn.done;
  }

  const WHO = { thinking: "RL model", vector: "vector" };

  /** Puts a token on the page; a step is a line, and is said when the next one begins. */
  function write({ token, by, kind }) {
    const word = engine.words[token], list = $("trace");
    if (!list.lastChild || engine.opens[token] >= 0 || word === "<eos>") {
      if (step) say(step);
      list.append(make("li"));
      step = WHO[by] ? `${WHO[by]}: ` : "";
    }
    step += `${word} `;
    const decided = by !== "writer" || engine.decision[token];
    const element = make("span", word, decided ? `token by-${by}` : "token");
    if (kind >= 0) element.title = `vector for "${engine.kinds[kind]}" added`;
    list.lastChild.append(element, " ");
  }

  function conclude(stopped) {
    const { solved, attempts, backtracks } = engine.grade(puzzle(), tokens);
    const end = stopped ? "" : " It was cut off at the greatest length.";
    $("verdict").textContent = `${solved ? "Solved" : "Not solved"}: ${tokens.length} tokens, `
      + `${attempts} attempts, ${backtracks} of them after going back.${end}`;
    sampler = null;
    pause();
  }

  async function run() {
    timer = -1;
    $("write").textContent = "Pause";
    while (timer !== null && await advance()) {
      await new Promise((go) => { timer = setTimeout(go, PAUSE); });
    }
    pause();
  }

  // --- fifty samples ----------------------------------------------------------------------------------

  let running = null;

  async function many() {
    if (running) {
      running.cancel();
      return;
    }
    const setup = setUp(), one = puzzle(), progress = $("progress");
    let solved = 0, n = 0;
    $("many").textContent = "Cancel";
    progress.hidden = false;
    progress.value = 0;
    running = samples(setup, one, { ...how(), samples: SAMPLES, slots: SLOTS }, (row) => {
      solved += engine.grade(one, row.tokens).solved;
      progress.value = ++n;
    });
    try {
      if (await running) list(setup, one, solved);
    } catch (error) {
      fail(error);
    }
    running = null;
    progress.hidden = true;
    $("many").textContent = `${SAMPLES} samples`;
  }

  function list(setup, one, solved) {
    const row = make("tr"), [low, high] = wilson(solved, SAMPLES);
    const share = make("td", percents(solved / SAMPLES, low, high));
    share.append(bar(solved / SAMPLES, low, high));
    row.append(make("td", `${stated(one)}: ${named(setup)}`), share);
    $("runs").hidden = false;
    $("runs").tBodies[0].prepend(row);
    say(`${named(setup)}: ${solved} of ${SAMPLES} samples solved, `
      + `${percents(solved / SAMPLES, low, high)}.`);
  }

  /** A bar with its interval; the number stands beside it. */
  function bar(value, low, high) {
    const whole = make("span", "", "bar"), part = make("span", "", "value");
    whole.setAttribute("aria-hidden", "true");
    part.style.width = `${100 * value}%`;
    whole.append(part);
    if (low !== null) {
      const interval = make("span", "", "interval");
      Object.assign(interval.style, { left: `${100 * low}%`, width: `${100 * (high - low)}%` });
      whole.append(interval);
    }
    return whole;
  }

  // --- pass@k -----------------------------------------------------------------------------------------

  function showCurves() {
    if (!curves.length) {
      $("curves").replaceChildren(make("p", "Chapter 2 has not been measured yet."));
      return;
    }
    const ks = [...new Set(curves.flatMap(({ points }) => points.map(({ k }) => k)))]
      .sort((a, b) => a - b);
    const slider = $("k"), body = $("pass").tBodies[0];
    slider.max = ks.length - 1;
    const show = () => {
      const k = ks[slider.value];
      $("k-said").textContent = k === 1 ? "1 sample" : `${k} samples`;
      slider.setAttribute("aria-valuetext", $("k-said").textContent);
      body.replaceChildren(...curves.map(({ label, points }) => {
        const row = make("tr"), point = points.find((x) => x.k === k), cell = make("td");
        row.append(Object.assign(make("th", label), { scope: "row" }), cell);
        if (point) {
          cell.append(point.text, bar(point.value, point.low, point.high));
        } else cell.textContent = "not measured";
        return row;
      }));
    };
    const { problems, seeds } = curves[0];
    $("pass-of").textContent = `Chapter 2's numbers: ${problems} problems, ${seeds} `
      + `${seeds === 1 ? "seed" : "seeds"}, with 95 % intervals.`;
    slider.addEventListener("input", show);
    show();
  }

  // --- the page -----------------------------------------------------------------------------------------

  function begin() {
    showCurves();
    $("missing").hidden = Boolean(header);
    $("form").hidden = !header;
    if (!header) return;
    header.puzzles.forEach((one, i) => $("puzzle").append(new Option(stated(one), i)));
    $("strength-chosen").textContent = `${header.vectors.strength} did best on validation problems.`;
    for (const event of ["input", "change"]) $("form").addEventListener(event, settle);
    $("form").addEventListener("submit", (event) => event.preventDefault());
    $("draw").addEventListener("click", () => {
      $("puzzle").value = Math.floor(Math.random() * header.puzzles.length);
      say(stated(puzzle()));
      settle();
    });
    $("write").addEventListener("click", () => { timer === null ? run().catch(fail) : pause(); });
    $("one").addEventListener("click", () => { pause(); advance().catch(fail); });
    $("many").addEventListener("click", many);
    settle();
  }

  begin();
  return { engine, load, nets, samples, wilson };
})();
