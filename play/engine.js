"use strict";

/* The lab's model and its sampling in plain JavaScript: what `locksmith.cache`, `engine`, `drawing`
   and `experiments.hybrid` do in Python, with the same random numbers, so that a seed gives the same
   trace. Weights and the key-value cache are single, activations double precision.

   It is one function, because its text is also what a worker runs: a page that is a file may not
   load a worker from another file. `header` is what the stage `play` of the pipeline writes, see
   lib/locksmith/experiments/browser.py. */
function locksmithEngine(header) {
  const { hidden: D, layers: L, heads: H, mlp: M, context: T, epsilon, theta } = header.config;
  const S = D / H;  // dimensions of a head
  const words = header.vocabulary, V = words.length;
  const id = new Map(words.map((word, i) => [word, i]));
  const kinds = Object.keys(header.openings);
  const END = ["<eos>", "next"], stops = new Set(END.map((word) => id.get(word)));

  // Of each token: the kind of step that it opens (-1: none), whether it is a decision, and whether
  // the one behind it is a decision whatever it is ("let" has been said, "us see" has not).
  const opens = new Int32Array(V).fill(-1), decision = new Uint8Array(V), owned = new Uint8Array(V);
  for (const token of stops) decision[token] = 1;
  kinds.forEach((kind, k) => header.openings[kind].forEach((opening) => {
    opens[id.get(opening[0])] = k;
    opening.forEach((word, i) => {
      decision[id.get(word)] = 1;
      if (i + 1 < opening.length) owned[id.get(word)] = 1;
    });
  }));

  // --- random numbers (`drawing.uniforms`): splitmix64 of what names a token ---------------------

  function scramble(x) {
    x = BigInt.asUintN(64, (x ^ (x >> 30n)) * 0xBF58476D1CE4E5B9n);
    x = BigInt.asUintN(64, (x ^ (x >> 27n)) * 0x94D049BB133111EBn);
    return x ^ (x >> 31n);
  }

  /** A number in (0, 1), a function of four integers. */
  function uniform(seed, key, sample, position) {
    let x = 0n;
    for (const part of [seed, key, sample, position]) {
      x = scramble(BigInt.asUintN(64, x + BigInt(part) + 0x9E3779B97F4A7C15n));
    }
    return (Number(x >> 11n) + 0.5) * 2 ** -53;
  }

  const STREAMS = { category: 2, position: 3 };  // places in `hybrid.STREAMS`
  const fresh = (u, stream) =>
    uniform(new BigInt64Array(Float64Array.of(u).buffer)[0], STREAMS[stream], 0, 0);

  /** A token by inverse CDF at u, and how far u lies from the nearest edge of its share. */
  function draw(logits, at, u) {
    let most = -Infinity, sum = 0, whole = 0;
    for (let i = at; i < at + V; i++) most = Math.max(most, logits[i]);
    for (let i = at; i < at + V; i++) sum += Math.exp(logits[i] - most);
    const p = new Float32Array(V), least = most + Math.log(sum);
    for (let i = 0; i < V; i++) whole += p[i] = Math.exp(logits[at + i] - least);
    const target = u * whole;
    let token = 0, last = V - 1, cdf = p[0], below = 0;
    while (last > 0 && !p[last]) last--;
    while (token < last && cdf <= target) {
      below = cdf;
      cdf += p[++token];
    }
    return { token, margin: Math.min(target - below, cdf - target) };
  }

  // --- the forward pass (`cache.Fused`) ----------------------------------------------------------

  /** The tensors of a model, by name, in one array; those that are used together lie together. */
  function net(numbers) {
    const at = {};
    let end = 0;
    for (const [name, shape] of header.tensors) {
      const size = shape.reduce((a, b) => a * b);
      at[name] = end;
      end += size;
    }
    if (numbers.length !== end) throw new Error(`weights are ${numbers.length}, not ${end} numbers`);
    const cut = (name, size) => numbers.subarray(at[name], at[name] + size);
    const block = (i) => ({
      before: cut(`${i}.before`, D), qkv: cut(`${i}.q`, 3 * D * D), out: cut(`${i}.out`, D * D),
      after: cut(`${i}.after`, D), up: cut(`${i}.gate`, 2 * M * D), down: cut(`${i}.down`, D * M),
    });
    return { table: cut("table", V * D), norm: cut("norm", D),
             blocks: Array.from({ length: L }, (_, i) => block(i)) };
  }

  /** y (rows, outputs) = x (rows, inputs) times weight (outputs, inputs) transposed. */
  function multiply(weight, outputs, inputs, x, rows, y) {
    let r = 0;
    for (; r + 4 <= rows; r += 4) {
      const a = r * inputs, b = a + inputs, c = b + inputs, d = c + inputs;
      for (let o = 0; o < outputs; o += 2) {  // outputs are even, a weight's load serves four rows
        const w = o * inputs, z = w + inputs;
        let p0 = 0, p1 = 0, q0 = 0, q1 = 0, s0 = 0, s1 = 0, t0 = 0, t1 = 0;
        for (let i = 0; i < inputs; i++) {
          const v = weight[w + i], u = weight[z + i];
          const p = x[a + i], q = x[b + i], s = x[c + i], t = x[d + i];
          p0 += v * p; p1 += u * p;
          q0 += v * q; q1 += u * q;
          s0 += v * s; s1 += u * s;
          t0 += v * t; t1 += u * t;
        }
        const at = r * outputs + o;
        y[at] = p0; y[at + 1] = p1;
        y[at + outputs] = q0; y[at + outputs + 1] = q1;
        y[at + 2 * outputs] = s0; y[at + 2 * outputs + 1] = s1;
        y[at + 3 * outputs] = t0; y[at + 3 * outputs + 1] = t1;
      }
    }
    for (; r < rows; r++) {
      const a = r * inputs;
      for (let o = 0, w = 0; o < outputs; o++) {
        let p = 0, q = 0;  // two sums, so that one need not wait for the other
        for (let i = 0; i < inputs; i += 2, w += 2) {
          p += weight[w] * x[a + i];
          q += weight[w + 1] * x[a + i + 1];
        }
        y[r * outputs + o] = p + q;
      }
    }
  }

  function normalise(x, scale, rows, y) {
    for (let r = 0, at = 0; r < rows; r++, at += D) {
      let squares = 0;
      for (let i = 0; i < D; i++) squares += x[at + i] ** 2;
      const by = 1 / Math.sqrt(squares / D + epsilon);
      for (let i = 0; i < D; i++) y[at + i] = x[at + i] * by * scale[i];
    }
  }

  const add = (x, y, n) => { for (let i = 0; i < n; i++) x[i] += y[i]; };

  const cosine = new Float64Array(T * S / 2), sine = new Float64Array(T * S / 2);
  for (let t = 0; t < T; t++) {
    for (let i = 0; i < S / 2; i++) {
      cosine[t * S / 2 + i] = Math.cos(t * theta ** (-2 * i / S));
      sine[t * S / 2 + i] = Math.sin(t * theta ** (-2 * i / S));
    }
  }

  /** Rotary positions: turns the D numbers at `at` of x in place. */
  function turn(x, at, place) {
    for (let h = 0; h < H; h++, at += S) {
      for (let i = 0, j = place * S / 2; i < S / 2; i++, j++) {
        const a = x[at + i], b = x[at + i + S / 2];
        x[at + i] = a * cosine[j] - b * sine[j];
        x[at + i + S / 2] = b * cosine[j] + a * sine[j];
      }
    }
  }

  /** A model that reads up to `slots` texts side by side, each with a cache of its own. */
  class Reader {
    constructor(weights, slots) {
      this.net = weights;
      this.keys = Array.from({ length: L }, () => new Float32Array(slots * T * D));
      this.values = Array.from({ length: L }, () => new Float32Array(slots * T * D));
      const room = (width) => new Float64Array(slots * width);
      this.x = room(D);
      this.y = room(D);
      this.qkv = room(3 * D);
      this.up = room(2 * M);
      this.gated = room(M);
      this.logits = room(V);
      this.scores = new Float64Array(T);
    }

    /** Reads one token each of texts [{slot, token, place}]; returns logits, one row a text.
        touch(block, x): called after each block with the residual stream (rows, D). */
    read(texts, touch) {
      const { x, y, qkv, up, gated } = this, n = texts.length;
      texts.forEach(({ token }, r) => x.set(this.net.table.subarray(token * D, token * D + D), r * D));
      this.net.blocks.forEach((block, i) => {
        normalise(x, block.before, n, y);
        multiply(block.qkv, 3 * D, D, y, n, qkv);
        texts.forEach((text, r) => this.attend(i, text, r));
        multiply(block.out, D, D, y, n, gated);
        add(x, gated, n * D);
        normalise(x, block.after, n, y);
        multiply(block.up, 2 * M, D, y, n, up);
        for (let r = 0; r < n; r++) {
          for (let j = 0, a = 2 * r * M; j < M; j++, a++) {
            gated[r * M + j] = up[a] / (1 + Math.exp(-up[a])) * up[a + M];
          }
        }
        multiply(block.down, D, M, gated, n, y);
        add(x, y, n * D);
        if (touch) touch(i, x);
      });
      normalise(x, this.net.norm, n, y);
      multiply(this.net.table, V, D, y, n, this.logits);
      return this.logits;
    }

    /** Row r of `qkv` into the cache; what it attends to, mixed, into row r of `y`. */
    attend(i, { slot, place }, r) {
      const { qkv, y, scores } = this, keys = this.keys[i], values = this.values[i];
      const q = 3 * r * D, first = slot * T * D, own = first + place * D;
      turn(qkv, q, place);
      turn(qkv, q + D, place);
      keys.set(qkv.subarray(q + D, q + 2 * D), own);
      values.set(qkv.subarray(q + 2 * D, q + 3 * D), own);
      y.fill(0, r * D, r * D + D);
      for (let h = 0; h < D; h += S) {
        let most = -Infinity, sum = 0;
        for (let t = 0, k = first + h; t <= place; t++, k += D) {
          let dot = 0;
          for (let j = 0; j < S; j++) dot += qkv[q + h + j] * keys[k + j];
          scores[t] = dot / Math.sqrt(S);
          most = Math.max(most, scores[t]);
        }
        for (let t = 0; t <= place; t++) sum += scores[t] = Math.exp(scores[t] - most);
        for (let t = 0, k = first + h; t <= place; t++, k += D) {
          const share = scores[t] / sum;
          for (let j = 0; j < S; j++) y[r * D + h + j] += share * values[k + j];
        }
      }
    }

    /** Every slot has read what slot 0 has, up to `place`. */
    share(place) {
      for (const cache of [...this.keys, ...this.values]) {
        for (let at = T * D; at < cache.length; at += T * D) cache.copyWithin(at, 0, place * D);
      }
    }
  }

  // --- sampling (`engine.sample`, `hybrid.swap` and the gates of `hybrid`) -----------------------

  /** p(token) = the decider's for decisions; the rest is shared out as the writer has it. */
  function swap(decides, executes, at, owns) {
    const logsum = (x, chosen) => {
      let most = -Infinity, sum = 0;
      for (let i = 0; i < V; i++) if (chosen(i)) most = Math.max(most, x[at + i]);
      for (let i = 0; i < V; i++) if (chosen(i)) sum += Math.exp(x[at + i] - most);
      return most + Math.log(sum);
    };
    const all = () => true, rest = (i) => !decision[i];
    const theirs = logsum(decides, all);
    const move = logsum(decides, rest) - theirs - logsum(executes, rest);
    for (let i = 0; i < V; i++) {
      executes[at + i] = owns || decision[i] ? decides[at + i] - theirs : executes[at + i] + move;
    }
  }

  /** Which models a set-up runs. writer: a name of header.models; decides: the RL model makes the
      decisions; strength: of the vectors, 0 for none; when: "moments" or "random". */
  const needed = ({ writer, decides, strength, when }) =>
    [...new Set([writer, ...decides || strength && when === "moments" ? ["thinking"] : []])];

  /** Samples first, first + 1, ... of a prompt (token ids), `slots` of them at a time.
      key: names the prompt in the random numbers, as in `engine.sample`. */
  class Sampler {
    constructor(nets, setup, prompt, { seed, key, first = 0, samples = 1, slots = 1 }) {
      Object.assign(this, { setup, prompt, seed, key, next: first, end: first + samples });
      const steers = !setup.decides && setup.strength > 0, asks = steers && setup.when === "moments";
      const reader = (name) => new Reader(nets[name], slots);
      this.writer = reader(setup.writer);
      this.guide = setup.decides || asks ? reader("thinking") : null;
      this.own = asks ? reader(setup.writer) : null;  // the writer, never steered
      this.vectors = steers ? header.vectors.of[setup.writer] : null;
      this.readers = [this.writer, this.guide, this.own].filter(Boolean);
      for (const some of this.readers) {
        prompt.slice(0, -1).forEach((token, place) => some.read([{ slot: 0, token, place }]));
        some.share(prompt.length - 1);
      }
      this.texts = [];
      for (let slot = 0; slot < slots && this.next < this.end; slot++) this.start(slot);
    }

    start(slot) {
      this.texts.push({ slot, sample: this.next++, token: this.prompt.at(-1),
                        place: this.prompt.length - 1 });
    }

    /** {kind, margin}: the kind of step whose vector is added before the next token of row r, -1
        for none, and how far the draws that say so lie from another answer. */
    choose(u, r, theirs, own) {
      if (!this.vectors) return { kind: -1, margin: 1 };
      if (this.setup.when === "random") {
        if (fresh(u, "position") >= header.vectors.rate) return { kind: -1, margin: 1 };
        const cdf = [];
        header.vectors.frequencies.forEach((x, k) => cdf.push(x + (k ? cdf[k - 1] : 0)));
        const at = fresh(u, "category") * cdf.at(-1);
        return { kind: cdf.slice(0, -1).filter((x) => at >= x).length, margin: 1 };
      }
      const guided = draw(theirs, r * V, u), alone = draw(own, r * V, u), kind = opens[guided.token];
      return { kind: kind >= 0 && opens[alone.token] !== kind ? kind : -1,
               margin: Math.min(guided.margin, alone.margin) };
    }

    /** One token more of each live text: [{sample, token, by, kind, margin, done, stopped}].
        by: "writer", "thinking" or "vector", who decided; kind: of the vector; margin: how far the
        draws lie from other tokens, of 1. */
    step() {
      const { texts, setup } = this;
      const u = texts.map(({ sample, place }) => uniform(this.seed, this.key, sample, place + 1));
      const theirs = this.guide?.read(texts), own = this.own?.read(texts);
      const choices = u.map((x, r) => this.choose(x, r, theirs, own));
      const logits = this.writer.read(texts, this.vectors && ((block, x) => {
        if (block !== header.vectors.layer) return;
        choices.forEach(({ kind }, r) => {
          for (let i = 0; kind >= 0 && i < D; i++) {
            x[r * D + i] += setup.strength * this.vectors[kind * D + i];
          }
        });
      }));
      const longest = Math.min(this.prompt.length + header.max_new_tokens, T);
      const drawn = texts.map((text, r) => {
        const owns = owned[text.token], { kind, margin: gate } = choices[r];
        if (setup.decides) swap(theirs, logits, r * V, owns);
        const { token, margin } = draw(logits, r * V, u[r]), decided = owns || decision[token];
        const by = kind >= 0 ? "vector" : setup.decides && decided ? "thinking" : "writer";
        text.token = token;
        text.place++;
        const stopped = stops.has(token), done = stopped || text.place + 1 >= longest;
        return { sample: text.sample, token, by, kind, margin: Math.min(gate, margin), stopped, done };
      });
      const free = texts.filter((_, r) => drawn[r].done).map(({ slot }) => slot);
      this.texts = texts.filter((_, r) => !drawn[r].done);
      for (const slot of free) if (this.next < this.end) this.start(slot);
      return drawn;
    }
  }

  // --- puzzles and what a trace is worth (`tasks.countdown`) -------------------------------------

  const prompt = ({ numbers, targets: [a, b] }) =>
    ["<bos>", "make", a, "and", b, "from", ...numbers, ":"].map((word) => id.get(String(word)));

  const isNumber = (word) => /^\d+$/.test(word ?? "");

  function apply(a, operator, b) {
    const value = { "+": a + b, "-": a - b, "*": a * b }[operator] ?? -1;
    return value >= 0 && value <= 99 ? value : null;
  }

  /** Value of an answer such as 3 * 7 + 9; null unless it is valid for the numbers. */
  function value(answer, numbers) {
    if (answer.length !== 5 || ![0, 2, 4].every((i) => isNumber(answer[i]))) return null;
    const used = [0, 2, 4].map((i) => Number(answer[i])), rising = (x) => [...x].sort((a, b) => a - b);
    if (String(rising(used)) !== String(rising(numbers))) return null;
    const first = apply(used[0], answer[1], used[1]);
    return first === null ? null : apply(first, answer[3], used[2]);
  }

  /** [kind, words behind the opening] of each step of a trace, as `grammar.steps`. */
  function steps(trace) {
    const found = [];
    for (let i = 0; i < trace.length && !END.includes(trace[i]);) {
      const kind = kinds[opens[id.get(trace[i])]] ?? { from: "measure", find: "inverse" }[trace[i]];
      if (kind) {
        const openings = header.openings[kind] ?? [[trace[i]]];
        found.push([kind, []]);
        i += openings.find((opening) => opening[0] === trace[i]).length;
      } else {
        if (!found.length) found.push([null, []]);
        found.at(-1)[1].push(trace[i++]);
      }
    }
    return found;
  }

  /** {solved, attempts, backtracks} of a trace (token ids): solved if it ended by itself and its
      two conclusions hit the targets in order. */
  function grade({ numbers, targets }, tokens) {
    const trace = tokens.map((token) => words[token]), found = steps(trace);
    const count = (...some) => found.filter(([kind]) => some.includes(kind)).length;
    const answers = found.filter(([kind]) => kind === "conclude").map(([, said]) => said);
    const whole = trace.at(-1) === "<eos>" && !trace.includes("next") && !count(null);
    const solved = whole && answers.length === targets.length
      && answers.every((answer, i) => value(answer, numbers) === targets[i]);
    return { solved, attempts: count("try", "wait"), backtracks: count("wait") };
  }

  return { net, Reader, Sampler, uniform, draw, prompt, grade, steps, needed, words, kinds, opens,
           decision, id };
}

/* Exported for a program that is no page; a page and a worker have it as a global. */
if (typeof module !== "undefined") module.exports = locksmithEngine;
