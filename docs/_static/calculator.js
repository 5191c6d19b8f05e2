// The numbers of wd.timescale, wd.convert_weight_decay and wd.transfer, in the browser.
// tests/site holds each function to Python's result, to 1e-9.
"use strict";
(() => {
// c_t = λ·(η_t/η_max)^ratio·η_t^power, as in wd_optax/couplings.py
const COUPLINGS = {
  lr: { ratio: 0, power: 1 },
  schedule: { ratio: 1, power: 0 },
  corrected: { ratio: 1, power: 1 },
  constant: { ratio: 0, power: 0 },
};

const cosine = (t, n) => 0.5 * (1 + Math.cos((Math.PI * t) / n));

// step -> η_t/η_max, for t = 0 … steps − 1: Optax's schedules of the same names
const SCHEDULES = {
  constant: () => 1,
  cosine: (t, steps) => cosine(t, steps),
  linear: (t, steps) => 1 - t / steps,
  "warm-up, cosine": (t, steps, warm) => (t < warm ? t / warm : cosine(t - warm, steps - warm)),
  "warm-up, linear": (t, steps, warm) => (t < warm ? t / warm : 1 - (t - warm) / (steps - warm)),
};

function learningRates({ schedule, peak, steps, warmup }) {
  return Float64Array.from({ length: steps }, (_, t) => peak * SCHEDULES[schedule](t, steps, warmup));
}

function rates(coupling, etas, decay, peak) {
  const { ratio, power } = COUPLINGS[coupling];
  return etas.map((eta) => decay * (ratio ? eta / peak : 1) * (power ? eta : 1));
}

const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);
const logRemaining = (c) => c.reduce((sum, x) => sum + Math.log1p(-x), 0);

function timescale(c, stepsPerEpoch) {
  const total = logRemaining(c);
  const mean = -Math.expm1(total / c.length);
  return {
    mean,
    largest: largest(c),
    halfLife: mean ? Math.log(0.5) / Math.log1p(-mean) : Infinity,
    steps: 1 / mean,
    epochs: 1 / mean / stepsPerEpoch,
    share: 1 / mean / c.length,
    remaining: Math.exp(total),
  };
}

// λ' under another coupling, or null where no constant λ' removes the same at every step
function convert(decay, { from, to, peak, constant }) {
  const [a, b] = [COUPLINGS[from], COUPLINGS[to]];
  const power = a.ratio + a.power - b.ratio - b.power;
  if (power && !constant) return null;
  return decay * peak ** power * peak ** (b.ratio - a.ratio);
}

// x with Σ ln(1 − x·shape_t) = target, where the largest shape_t is 1: by bisection of −ln(1 − x)
function solve(shape, target) {
  let [low, high] = [-target / shape.length, -target];
  for (let middle = (low + high) / 2; low < middle && middle < high; middle = (low + high) / 2) {
    const x = Math.expm1(-middle);
    if (shape.reduce((sum, s) => sum + Math.log1p(x * s), 0) > target) low = middle;
    else high = middle;
  }
  return -Math.expm1(-high);
}

// As wd_optax/choosing/transfer_rules.py: strength·factor is the same in both runs
const RULES = {
  angle: { strength: "peak", factor: () => 1, holds: "ηλ at the peak: the angle per step of normalised weights" },
  norm: { strength: "peak", factor: (run) => 1 / run.peak ** 2, holds: "η²/c: the norm of normalised weights" },
  timescale_epochs: {
    strength: "total", factor: (run) => run.examples / (run.batch * run.steps), holds: "the timescale in epochs",
  },
  timescale_run: { strength: "total", factor: () => 1, holds: "the timescale as a share of the run" },
  normalised: { strength: "peak", factor: (run) => Math.sqrt(run.steps), holds: "λ·√steps, the AdamW paper's" },
};

// {rule: λ' of the target}; null where the target would need a rate of 1 or more
function transfer(source, target, decay) {
  const c = rates(source.coupling, learningRates(source), decay, source.peak);
  const perDecay = rates(target.coupling, learningRates(target), 1, target.peak);
  const most = largest(perDecay);
  const result = {};
  for (const [name, { strength, factor }] of Object.entries(RULES)) {
    const ratio = factor(source) / factor(target);
    const rate = strength === "peak"
      ? largest(c) * ratio
      : solve(perDecay.map((x) => x / most), logRemaining(c) * ratio);
    result[name] = rate < 1 ? rate / most : null;
  }
  return result;
}

// Steps whose decay c·p rounds away: where c·|p| is under half the gap to the next number, which is between 2^-bits−1
// and 2^-bits of |p|.
function lostSteps(c, bits) {
  return {
    always: c.filter((x) => x > 0 && x < 2 ** (-bits - 1)).length,
    sometimes: c.filter((x) => x >= 2 ** (-bits - 1) && x < 2 ** -bits).length,
  };
}

globalThis.calculator = { learningRates, rates, timescale, convert, transfer, lostSteps };

// ---- the page ----

const LIMIT = 5e6; // steps; more take seconds

const show = (x) => {
  if (x === null) return "no constant λ";
  if (!Number.isFinite(x)) return "never";
  const digits = Math.abs(x) >= 1e4 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 };
  return Math.abs(x) && Math.abs(x) < 1e-3 ? x.toExponential(3) : x.toLocaleString("en", digits);
};

function read(form) {
  const value = (name) => form.elements[name].value;
  const number = (name) => Number(value(name));
  const run = {
    coupling: value("coupling"), schedule: value("schedule"), peak: number("peak"), steps: number("steps"),
    warmup: number("warmup"), batch: number("batch"), examples: number("examples"),
  };
  const scale = number("targetSteps") / run.steps;
  const target = {
    ...run, peak: number("targetPeak"), steps: number("targetSteps"), batch: number("targetBatch"),
    warmup: Math.round(run.warmup * scale),
  };
  return { run, target, decay: number("decay") };
}

function problem({ run, target, decay }) {
  for (const [name, x] of Object.entries({ λ: decay, "warm-up": run.warmup })) {
    if (!(x >= 0)) return `${name} must be 0 or more`;
  }
  const positive = { "peak η": run.peak, batch: run.batch, examples: run.examples, "its η": target.peak, "its batch": target.batch };
  for (const [name, x] of Object.entries(positive)) if (!(x > 0)) return `${name} must be above 0`;
  for (const [name, x] of Object.entries({ steps: run.steps, "its steps": target.steps })) {
    if (!Number.isInteger(x) || x < 1 || x > LIMIT) return `${name} must be a whole number from 1 to ${show(LIMIT)}`;
  }
  if (run.warmup >= run.steps) return "warm-up must be shorter than the run";
  const most = largest(rates(run.coupling, learningRates(run), decay, run.peak));
  return most >= 1 ? `λ removes ${show(most)} of each weight in one step: lower it, so that this is below 1` : "";
}

function rows(table, lines) {
  table.tBodies[0].replaceChildren(...lines.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell, i) => {
      const element = document.createElement(i ? "td" : "th");
      element.textContent = cell;
      return element;
    }));
    return row;
  }));
}

// The fraction of a weight without gradient that is left, over the run
function plot(svg, c) {
  const [width, height, points] = [320, 120, 160];
  const path = [];
  let [left, next] = [0, 0];
  for (let t = 0; t <= c.length; t++) {
    if (t >= next || t === c.length) {
      path.push(`${((t / c.length) * width).toFixed(2)},${((1 - Math.exp(left)) * height).toFixed(2)}`);
      next = t + c.length / points;
    }
    if (t < c.length) left += Math.log1p(-c[t]);
  }
  svg.querySelector("polyline").setAttribute("points", path.join(" "));
  svg.querySelector("title").textContent =
    `The fraction left of a weight without gradient falls from 1 to ${show(Math.exp(left))} over ${show(c.length)} steps.`;
}

function lost(name, c, bits) {
  const { always, sometimes } = lostSteps(c, bits);
  const share = (n) => `${show((100 * n) / c.length)} %`;
  return [name, `lost in ${share(always)} of the steps` + (sometimes ? `, in ${share(sometimes)} for some weights` : "")];
}

function update(form) {
  const input = read(form);
  const message = problem(input);
  const output = document.getElementById("calculator-output");
  document.getElementById("calculator-error").textContent = message;
  output.hidden = Boolean(message);
  if (message) return;
  const { run, target, decay } = input;
  const c = rates(run.coupling, learningRates(run), decay, run.peak);
  const scale = timescale(c, run.examples / run.batch);
  rows(document.getElementById("calculator-scale"), [
    ["removed per step", `${show(scale.mean)} on average, ${show(scale.largest)} at most`],
    ["half-life", `${show(scale.halfLife)} steps`],
    ["timescale", `${show(scale.steps)} steps = ${show(scale.epochs)} epochs = ${show(scale.share)} of the run`],
    ["left at the end", `${show(scale.remaining)} of a weight without gradient`],
    lost("in bfloat16", c, 8),
    lost("in float32", c, 24),
  ]);
  const used = {
    lr: "PyTorch, Optax, Keras, timm", schedule: "the AdamW paper, optimī decouple_lr, Composer, big_vision",
    corrected: "AdamC, timm corrected_weight_decay", constant: "TF-Addons, Optax's adafactor",
  };
  const constant = run.schedule === "constant";
  rows(document.getElementById("calculator-couplings"), Object.keys(COUPLINGS).map((to) => [
    to, show(convert(decay, { from: run.coupling, to, peak: run.peak, constant })), used[to],
  ]));
  const transferred = transfer(run, target, decay);
  rows(document.getElementById("calculator-transfer"), Object.keys(RULES).map((name) => [
    name, transferred[name] === null ? "needs too high a rate" : show(transferred[name]), RULES[name].holds,
  ]));
  plot(document.getElementById("calculator-plot"), c);
}

document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("calculator-form");
  if (!form) return;
  form.addEventListener("input", () => update(form));
  form.addEventListener("submit", (event) => event.preventDefault());
  update(form);
});
})();
