"use strict";
(() => {
  const { add, numbers, ticks, withMinus } = plot;
  const LEFT = 64;
  const RIGHT = 24;
  const TOP = 12;
  const BOTTOM = 40;
  const TRACE_HEIGHT = 260;

  const packed = JSON.parse(document.getElementById("traces").textContent);
  const nSteps = packed.n_steps;
  const raster = document.getElementById("raster");
  const trace = document.getElementById("trace");
  const readout = document.getElementById("readout");
  const recordingChoice = document.getElementById("recording");
  const layerChoice = document.getElementById("layer");

  const state = { neuron: 0, step: 0, held: false };
  let layer;

  // Values of one neuron over time, unpacked from the output of `pack` in viewer.py.
  function series(quantity, neuron) {
    const whole = quantity.whole.subarray(neuron * nSteps, (neuron + 1) * nSteps);
    return Array.from(whole, (number) => number * quantity.scale);
  }

  function unpacked(stored) {
    const steps = Array.from({ length: stored.n_units }, () => []);
    for (const index of numbers(stored.spikes, Int32Array)) {
      steps[Math.floor(index / nSteps)].push(index % nSteps);
    }
    const quantity = (one) => ({ scale: one.scale, whole: numbers(one.data, Int16Array) });
    return {
      nUnits: stored.n_units,
      steps,
      membrane: quantity(stored.membrane),
      threshold: quantity(stored.threshold),
    };
  }

  const rasterHeight = () => Math.min(Math.max(2 * layer.nUnits, 220), 480);
  const plotWidth = (svg) => Math.max(svg.clientWidth - LEFT - RIGHT, 100);
  const xOf = (svg, step) => LEFT + (step / nSteps) * plotWidth(svg);
  const rowHeight = () => rasterHeight() / layer.nUnits;
  const yOfRow = (neuron) => TOP + rasterHeight() - (neuron + 1) * rowHeight();

  function drawFrame(svg, height, label, marks, yOf) {
    svg.replaceChildren();
    svg.style.height = `${height + TOP + BOTTOM}px`;
    const width = plotWidth(svg);
    const xAxis = {
      label: "time (ms)",
      marks: ticks(0, nSteps * packed.dt_ms, width / 110),
      of: (time) => xOf(svg, time / packed.dt_ms),
    };
    plot.frame(svg, { x: LEFT, y: TOP, width, height }, xAxis, { label, marks, of: yOf });
  }

  function ticksPath(svg, steps, y, height) {
    return steps.map((step) => `M${xOf(svg, step).toFixed(1)} ${y.toFixed(2)}v${height}`).join("");
  }

  function drawRaster() {
    const yOf = (neuron) => yOfRow(neuron) + rowHeight() / 2;
    const marks = ticks(0, layer.nUnits - 1 || 1, 6).filter(({ value }) => value % 1 === 0);
    drawFrame(raster, rasterHeight(), "neuron", marks, yOf);
    const tall = Math.max(rowHeight() * 0.9, 3).toFixed(2);
    const paths = layer.steps.map((steps, neuron) =>
      ticksPath(raster, steps, yOfRow(neuron), tall));
    add(raster, "path", { d: paths.join(""), class: "spikes" });
    const width = plotWidth(raster);
    add(raster, "rect", { id: "here", x: LEFT, width, class: "here" });
    add(raster, "path", { id: "own", class: "own" });
    add(raster, "line", { class: "cursor", y1: TOP, y2: TOP + rasterHeight() });
  }

  function markNeuron() {
    const tall = Math.max(rowHeight(), 8);
    const y = yOfRow(state.neuron) + (rowHeight() - tall) / 2;
    const here = document.getElementById("here");
    here.setAttribute("y", y);
    here.setAttribute("height", tall);
    const own = ticksPath(raster, layer.steps[state.neuron], y, tall);
    document.getElementById("own").setAttribute("d", own);
  }

  function drawTrace() {
    const lines = { membrane: null, threshold: null };
    for (const name of Object.keys(lines)) lines[name] = series(layer[name], state.neuron);
    const values = [...lines.membrane, ...lines.threshold, 0];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const strip = 16; // spikes, above the lines
    const scale = (TRACE_HEIGHT - strip - 12) / (high - low || 1);
    const yOf = (value) => TOP + strip + 6 + (high - value) * scale;
    drawFrame(trace, TRACE_HEIGHT, "V, θ (base threshold = 1)", ticks(low, high, 5), yOf);
    for (const [name, line] of Object.entries(lines)) {
      const points = line.map((v, t) => `${xOf(trace, t).toFixed(1)} ${yOf(v).toFixed(1)}`);
      add(trace, "path", { d: `M${points.join("L")}`, class: name });
    }
    const spikes = ticksPath(trace, layer.steps[state.neuron], TOP + 3, strip - 4);
    add(trace, "path", { d: spikes, class: "spikes" });
    add(trace, "line", { class: "cursor", y1: TOP, y2: TOP + TRACE_HEIGHT });
  }

  function showTime() {
    const { neuron, step } = state;
    for (const svg of [raster, trace]) {
      const cursor = svg.querySelector(".cursor");
      cursor.setAttribute("x1", xOf(svg, step));
      cursor.setAttribute("x2", xOf(svg, step));
    }
    const at = neuron * nSteps + step;
    const membrane = layer.membrane.whole[at] * layer.membrane.scale;
    const threshold = layer.threshold.whole[at] * layer.threshold.scale;
    const fired = layer.steps[neuron].includes(step);
    const count = layer.steps[neuron].length;
    const time = Number((step * packed.dt_ms).toFixed(3));
    const shown = `Neuron ${neuron}${state.held ? " (held)" : ""}, ${count} ` +
      `spike${count === 1 ? "" : "s"}. At ${time} ms: V ${membrane.toFixed(3)}, ` +
      `θ ${threshold.toFixed(3)}${fired ? ", spike" : ""}`;
    readout.textContent = withMinus(shown);
    Object.assign(trace.dataset, { neuron, step, membrane, threshold, fired });
    raster.setAttribute("aria-valuenow", neuron);
    raster.setAttribute("aria-valuetext", readout.textContent);
  }

  function choose(neuron, step) {
    const before = state.neuron;
    state.neuron = Math.min(Math.max(neuron, 0), layer.nUnits - 1);
    state.step = Math.min(Math.max(step, 0), nSteps - 1);
    if (state.neuron !== before) {
      markNeuron();
      drawTrace();
    }
    showTime();
  }

  function drawAll() {
    drawRaster();
    markNeuron();
    drawTrace();
    showTime();
  }

  function load() {
    const recording = packed.recordings[recordingChoice.value];
    layer = unpacked(recording.layers[layerChoice.value]);
    const counts = layer.steps.map((steps) => steps.length);
    state.neuron = counts.indexOf(Math.max(...counts));
    state.step = layer.steps[state.neuron][0] ?? 0;
    state.held = false;
    raster.setAttribute("aria-valuemin", 0);
    raster.setAttribute("aria-valuemax", layer.nUnits - 1);
    const [v, theta] = [layer.membrane.scale, layer.threshold.scale].map((scale) =>
      scale.toPrecision(2));
    document.getElementById("precision").textContent =
      `Stored as 16-bit integers: V in units of ${v}, θ in units of ${theta}.`;
    drawAll();
  }

  function stepAt(svg, event) {
    const x = event.clientX - svg.getBoundingClientRect().left - LEFT;
    return Math.round((x / plotWidth(svg)) * nSteps);
  }

  function neuronAt(event) {
    const y = event.clientY - raster.getBoundingClientRect().top - TOP;
    return Math.floor((rasterHeight() - y) / rowHeight());
  }

  function point(event) {
    choose(state.held ? state.neuron : neuronAt(event), stepAt(raster, event));
  }

  raster.addEventListener("pointermove", point);
  raster.addEventListener("click", (event) => {
    state.held = !state.held;
    if (state.held) choose(neuronAt(event), stepAt(raster, event));
    showTime();
  });
  trace.addEventListener("pointermove", (event) => choose(state.neuron, stepAt(trace, event)));

  const KEYS = {
    ArrowUp: [1, 0],
    ArrowDown: [-1, 0],
    PageUp: [10, 0],
    PageDown: [-10, 0],
    Home: [-Infinity, 0],
    End: [Infinity, 0],
    ArrowRight: [0, 1],
    ArrowLeft: [0, -1],
  };
  raster.addEventListener("keydown", (event) => {
    const move = KEYS[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(state.neuron + move[0], state.step + move[1]);
  });

  packed.recordings.forEach(({ title }, i) => recordingChoice.add(new Option(title, i)));
  packed.recordings[0].layers.forEach((_, i) =>
    layerChoice.add(new Option(`hidden ${i + 1}`, i)));
  recordingChoice.addEventListener("change", load);
  layerChoice.addEventListener("change", load);
  let width = 0;
  new ResizeObserver(() => {
    if (raster.clientWidth === width) return;
    width = raster.clientWidth;
    drawAll();
  }).observe(raster);
  load();
})();
