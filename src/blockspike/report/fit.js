"use strict";
(() => {
  const { add, bytesOf, ticks, frame, linear, withMinus } = plot;
  const LEFT = 72;
  const RIGHT = 14;
  const TOP = 10;
  const GAP = 14;
  const BOTTOM = 42;
  const UNKNOWN = 65535; // see packed.py
  const SHORTEST_STEPS = 20;

  const overview = JSON.parse(document.getElementById("overview").textContent);
  const plotWidth = (svg) => Math.max(svg.clientWidth - LEFT - RIGHT, 100);
  const finite = (values) => values.filter((value) => value !== null && !Number.isNaN(value));
  const short = (value) => withMinus(String(Number(value.toPrecision(3))));

  // Low and high of values, a little apart from them; 0 and 1 without values.
  function range(values, margin = 0.05) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) return [0, 1];
    const extra = margin * (high - low || Math.abs(high) || 1);
    return [low - extra, high + extra];
  }

  function emptied(svg, height) {
    svg.replaceChildren();
    svg.style.height = `${height}px`;
    return svg;
  }

  // ---- a table that its headings sort

  function sortBy(table, column) {
    const headings = [...table.querySelectorAll("thead th")];
    const before = headings[column].getAttribute("aria-sort");
    const isNumber = headings[column].classList.contains("number");
    const falls = before === "none" ? isNumber : before === "ascending";
    headings.forEach((heading) => heading.setAttribute("aria-sort", "none"));
    headings[column].setAttribute("aria-sort", falls ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.children[column];
      return isNumber ? Number(cell.dataset.number) : cell.textContent.trim();
    };
    const order = (a, b) => (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: key(row) }));
    rows.sort((a, b) => {
      const [unknownA, unknownB] = [Number.isNaN(a.value), Number.isNaN(b.value)];
      if (unknownA || unknownB) return unknownA - unknownB;
      return falls ? order(b.value, a.value) : order(a.value, b.value);
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
  }

  for (const table of document.querySelectorAll("table.sorted")) {
    table.querySelectorAll("thead button").forEach((button, column) =>
      button.addEventListener("click", () => sortBy(table, column)));
  }

  // ---- all cells

  function mark(svg, x, y, r, name, cell, text) {
    const dot = add(svg, "circle", { cx: x, cy: y, r, class: name });
    add(dot, "title", {}, `${overview.cells[cell]}: ${text}`);
    dot.addEventListener("click", () => { location.hash = `cell-${cell}`; });
  }

  function drawScores() {
    const svg = document.getElementById("all-scores");
    if (!svg) return;
    const { ETV: etv, null: none = [], reliability = [] } = overview.scores;
    const order = etv.map((_, cell) => cell).sort((a, b) => (etv[b] ?? -9) - (etv[a] ?? -9));
    const height = 220;
    const box = { x: LEFT, y: TOP, width: plotWidth(emptied(svg, height + TOP + BOTTOM)), height };
    const [low, high] = range(finite([0, 1, ...etv, ...none, ...reliability]));
    const yOf = linear(low, high, TOP + height, TOP);
    const xOf = linear(-1, order.length, box.x, box.x + box.width);
    const x = { label: "cell, in the order of its ETV", marks: [], of: xOf };
    frame(svg, box, x, { label: "ETV", marks: ticks(low, high, 5), of: yOf });
    const size = Math.min(4, Math.max(2, box.width / order.length / 2));
    order.forEach((cell, place) => {
      const at = xOf(place);
      const known = (value) => value !== null && value !== undefined;
      if (known(reliability[cell])) {
        const text = `reliability ${short(reliability[cell])}`;
        mark(svg, at, yOf(reliability[cell]), size, "hollow", cell, text);
      }
      if (known(etv[cell])) {
        mark(svg, at, yOf(etv[cell]), size, "model", cell, `ETV ${short(etv[cell])}`);
      }
      if (known(none[cell])) {
        add(svg, "path", { d: `M${at - 1.7 * size} ${yOf(none[cell])}h${3.4 * size}`, class: "null" });
      }
    });
  }

  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = sorted.length / 2;
    return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle) - 1]) / 2;
  }

  function drawDistributions() {
    const grid = document.getElementById("distributions");
    if (!grid) return;
    const kinds = [...new Set(overview.kinds)].sort();
    grid.replaceChildren();
    // All at first, since their number sets their width.
    const plots = overview.parameters.map(() => add(grid, "svg", { class: "plot", role: "img" }));
    for (const [i, { label, values }] of overview.parameters.entries()) {
      const svg = plots[i];
      const row = kinds.length > 1 ? 30 : 60;
      const height = row * kinds.length;
      const left = kinds.length > 1 ? 110 : 20;
      const width = Math.max(svg.clientWidth - left - RIGHT, 100);
      const box = { x: left, y: TOP, width, height };
      emptied(svg, height + TOP + BOTTOM);
      const [low, high] = range(finite(values));
      const xOf = linear(low, high, box.x, box.x + box.width);
      const x = { label, marks: ticks(low, high, Math.max(4, width / 70)), of: xOf };
      frame(svg, box, x, { label: "", marks: [], of: (y) => y });
      const medians = kinds.map((kind, k) => {
        const own = values.map((value, cell) => ({ value, cell })).filter(({ value, cell }) =>
          value !== null && overview.kinds[cell] === kind);
        const middle = TOP + (k + 0.5) * row;
        if (kinds.length > 1) {
          const place = { x: box.x - 8, y: middle + 4, "text-anchor": "end" };
          add(svg, "text", place, kind.length > 14 ? `${kind.slice(0, 13)}…` : kind || "unknown");
        }
        own.forEach(({ value, cell }, place) => {
          const off = (((place * 0.618) % 1) - 0.5) * row * 0.6; // spread evenly, always alike
          mark(svg, xOf(value), middle + off, own.length > 50 ? 3 : 4, "model", cell, short(value));
        });
        if (!own.length) return "";
        const of = median(own.map(({ value }) => value));
        add(svg, "path", { d: `M${xOf(of)} ${middle - row / 2}v${row}`, class: "median" });
        return `${kind} median ${short(of)} of ${own.length} cells`;
      });
      svg.setAttribute("aria-label", `${label}: ${medians.filter(Boolean).join(", ").trim()}`);
    }
  }

  // ---- one cell

  // Series of a segment: `at(i)`, the number of points, and how many of them fill the segment.
  function seriesOf(quantity, segment) {
    const { low, level, whole } = quantity;
    const n = whole.length / low.length;
    const own = whole.subarray(segment * n, (segment + 1) * n);
    const at = (i) => (own[i] === UNKNOWN ? NaN : low[segment] + level[segment] * own[i]);
    return { n, full: quantity.full ?? n, at };
  }

  // Whole numbers as `pack_numbers` in packed.py packs them.
  async function inflated(text, kind) {
    const stream = new Blob([bytesOf(text)]).stream();
    const whole = new Response(stream.pipeThrough(new DecompressionStream("deflate")));
    const planes = new Uint8Array(await whole.arrayBuffer());
    const size = kind.BYTES_PER_ELEMENT;
    const n = planes.length / size;
    const bytes = new Uint8Array(planes.length);
    for (let k = 0; k < size; k += 1) {
      for (let i = 0; i < n; i += 1) bytes[i * size + k] = planes[k * n + i];
    }
    return new kind(bytes.buffer);
  }

  async function spikesOf(text, nSegments, nTrials, nSteps) {
    const segments = Array.from({ length: nSegments }, () => []);
    let place = 0;
    for (const difference of await inflated(text, Uint32Array)) {
      place += difference;
      const row = Math.floor(place / nSteps);
      segments[Math.floor(row / nTrials)].push({ trial: row % nTrials, step: place % nSteps });
    }
    return segments;
  }

  async function unpacked(stored) {
    const series = {};
    for (const name of ["current_pa", "voltage_mv", "membrane", "threshold", "recorded_hz", "model_hz"]) {
      const one = stored[name];
      series[name] = one && { ...one, whole: await inflated(one.data, Uint16Array) };
    }
    for (const rate of [series.recorded_hz, series.model_hz]) {
      rate.full = stored.n_steps / stored.rate_steps; // the last may stand for fewer steps
    }
    const { n_recorded: nRecorded, n_model: nModel, n_steps: nSteps } = stored;
    const spikes = (text, nTrials) => spikesOf(text, nRecorded.length, nTrials, nSteps);
    return {
      ...stored, series,
      recorded: await spikes(stored.recorded, Math.max(...nRecorded)),
      model: await spikes(stored.model, nModel),
    };
  }

  const PANELS = { current: 80, rate: 110, voltage: 110, membrane: 110 };
  const rasterHeight = (nRows) => Math.min(Math.max(9 * (nRows + 1), 70), 320);

  function timeHeight(svg) {
    const { current, rate, membrane, voltage } = PANELS;
    const panels = [current, rasterHeight(Number(svg.dataset.rows)), rate, membrane];
    if (svg.dataset.voltage === "1") panels.push(voltage);
    return TOP + panels.reduce((sum, height) => sum + height + GAP, -GAP) + BOTTOM;
  }

  class Cell {
    constructor(section, data) {
      this.section = section;
      this.data = data;
      this.svg = section.querySelector("svg.time");
      this.choice = section.querySelector(".segment");
      this.zoom = section.querySelector(".zoom");
      this.from = section.querySelector(".from");
      this.readout = section.querySelector(".readout");
      this.durationS = (this.data.n_steps * this.data.dt_ms) / 1000;
      const shortest = Math.min(SHORTEST_STEPS / this.data.n_steps, 1);
      this.shareOf = () => shortest ** (this.zoom.value / 100);
      this.zoomOf = (share) =>
        shortest === 1 ? 0 : (100 * Math.log(share)) / Math.log(shortest);
      this.choice.addEventListener("change", () => this.drawTime());
      this.zoom.addEventListener("input", () => this.zoomTo(this.shareOf(), 0.5));
      this.from.addEventListener("input", () => this.drawTime());
      this.svg.addEventListener("pointerdown", (event) => this.grab(event));
      this.svg.addEventListener("pointermove", (event) => this.point(event));
      this.svg.addEventListener("pointerup", () => { this.held = null; });
      this.svg.addEventListener("pointercancel", () => { this.held = null; });
      this.svg.addEventListener("dblclick", (event) =>
        this.zoomTo(this.shareOf() / 2, this.shareAt(event)));
      this.share = 1; // shown share of the segment
      this.setFrom(0);
    }

    // First shown time as a share of the segment.
    get start() { return Number(this.from.value); }

    setFrom(start) {
      this.from.max = 1 - this.share;
      this.from.value = Math.min(Math.max(start, 0), 1 - this.share);
    }

    // Show a share of the segment; what is at `place` (0 = left, 1 = right) stays there.
    zoomTo(share, place) {
      const fixed = this.start + place * this.share;
      this.zoom.value = this.zoomOf(Math.min(Math.max(share, 0), 1));
      this.share = this.shareOf();
      this.setFrom(fixed - place * this.share);
      this.drawTime();
    }

    shareAt(event) {
      const x = event.clientX - this.svg.getBoundingClientRect().left - LEFT;
      return Math.min(Math.max(x / plotWidth(this.svg), 0), 1);
    }

    grab(event) {
      if (event.pointerType === "mouse" && event.button !== 0) return;
      this.held = { place: this.shareAt(event), start: this.start };
      this.svg.setPointerCapture(event.pointerId);
    }

    point(event) {
      const place = this.shareAt(event);
      if (this.held) {
        this.setFrom(this.held.start + (this.held.place - place) * this.share);
        this.drawTime();
      }
      const share = Math.min(this.start + place * this.share, 1 - 1e-9);
      const segment = Number(this.choice.value);
      const value = (name, unit) => {
        if (!this.data.series[name]) return "";
        const line = seriesOf(this.data.series[name], segment);
        const there = line.at(Math.min(Math.floor(share * line.full), line.n - 1));
        return Number.isNaN(there) ? "" : `${short(there)}${unit}`;
      };
      const known = [
        ["current", value("current_pa", " pA")], ["recorded", value("recorded_hz", " Hz")],
        ["model", value("model_hz", " Hz")], ["V", value("membrane", "")],
        ["θ", value("threshold", "")], ["recorded V", value("voltage_mv", " mV")],
      ].filter(([, text]) => text);
      const time = (share * this.durationS).toFixed(4);
      this.readout.textContent =
        `At ${time} s: ${known.map(([name, text]) => `${name} ${text}`).join(", ")}`;
    }

    draw() {
      this.drawTime();
      this.drawRates();
      this.drawIntervals();
    }

    drawTime() {
      const { svg, data } = this;
      const segment = Number(this.choice.value);
      emptied(svg, timeHeight(svg));
      const width = plotWidth(svg);
      const [first, last] = [this.start, this.start + this.share];
      const xOf = linear(first, last, 0, width);
      const span = `${(first * this.durationS).toFixed(2)} to ${(last * this.durationS).toFixed(2)} s`;
      this.from.setAttribute("aria-valuetext", span);
      this.zoom.setAttribute("aria-valuetext", `${(this.share * this.durationS).toFixed(3)} s shown`);
      const panels = [
        ["I (pA)", PANELS.current, [["current_pa", "current"]]],
        ["trial", rasterHeight(Number(svg.dataset.rows)), null],
        ["rate (Hz)", PANELS.rate, [["recorded_hz", "recorded"], ["model_hz", "model"]]],
        ["V, θ (thresholds)", PANELS.membrane, [["threshold", "threshold"], ["membrane", "model"]]],
      ];
      if (data.series.voltage_mv) {
        panels.push(["V (mV)", PANELS.voltage, [["voltage_mv", "recorded"]]]);
      }
      let y = TOP;
      panels.forEach(([label, height, lines], i) => {
        const box = { x: LEFT, y, width, height };
        const isLast = i === panels.length - 1;
        const seconds = this.durationS;
        const x = isLast && {
          label: "time in the segment (s)",
          marks: ticks(first * seconds, last * seconds, Math.max(3, width / 110)),
          of: (time) => LEFT + xOf(time / seconds),
        };
        // A nested picture cuts off what is outside.
        const inner = () => add(svg, "svg", { ...box, overflow: "hidden" });
        if (lines) {
          const series = lines.map(([name, style]) =>
            ({ style, ...seriesOf(data.series[name], segment) }));
          this.drawLines(box, x, label, series, inner, xOf);
        } else {
          this.drawRaster(box, x, segment, inner, xOf);
        }
        y += height + GAP;
      });
    }

    drawLines(box, x, label, series, inner, xOf) {
      const least = label === "rate (Hz)" ? [0, 1] : []; // also of silence
      const drawn = series.map((line) => pointsOf(line, this.start, this.share, box.width));
      const [low, high] = range([...least, ...drawn.flatMap((points) => finite(points.map(([, v]) => v)))]);
      const yOf = linear(low, high, box.height, 0);
      const marks = ticks(low, high, 3);
      frame(this.svg, box, x, { label, marks, of: (value) => box.y + yOf(value) });
      const clipped = inner();
      drawn.forEach((points, i) => {
        let pen = "M";
        const path = points.map(([share, value]) => {
          if (Number.isNaN(value)) { pen = "M"; return ""; }
          const step = `${pen}${xOf(share).toFixed(1)} ${yOf(value).toFixed(1)}`;
          pen = "L";
          return step;
        });
        add(clipped, "path", { d: path.join(""), class: series[i].style });
      });
    }

    drawRaster(box, x, segment, inner, xOf) {
      const { data } = this;
      const n = data.n_recorded[segment];
      const row = box.height / (n + 1 + data.n_model);
      const sets = [["recorded", 0, n], ["model", n + 1, data.n_model]];
      const marks = sets.map(([name, top, rows]) =>
        ({ value: top + rows / 2, text: name === "model" ? "model" : rows > 1 ? `1–${rows}` : "1" }));
      frame(this.svg, box, x, { label: "trial", marks, of: (value) => box.y + value * row });
      const clipped = inner();
      const { n_steps: nSteps } = data;
      for (const [name, top] of sets) {
        const path = data[name][segment].map(({ trial, step }) => {
          const share = (step + 0.5) / nSteps;
          if (share < this.start || share > this.start + this.share) return "";
          return `M${xOf(share).toFixed(1)} ${((top + trial + 0.1) * row).toFixed(1)}v${(0.8 * row).toFixed(1)}`;
        });
        add(clipped, "path", { d: path.join(""), class: `${name} spike` });
      }
    }

    drawRates() {
      const svg = emptied(this.section.querySelector("svg.rates"), 250);
      const rows = this.data.rates;
      const box = { x: LEFT, y: TOP, width: plotWidth(svg), height: 250 - TOP - BOTTOM };
      let [left, right] = range(rows.map(([current]) => current), 0.1);
      const least = 0.2 * Math.max(Math.abs(left), Math.abs(right));  // a panel without it would zoom into noise
      if (right - left < least) [left, right] = [(left + right - least) / 2, (left + right + least) / 2];
      const [low, high] = range([0, ...rows.flatMap(([, recorded, model]) => [recorded, model])]);
      const xOf = linear(left, right, box.x, box.x + box.width);
      const yOf = linear(low, high, box.y + box.height, box.y);
      const label = this.data.are_steps ? "current of the step (pA)" : "mean current (pA)";
      const x = { label, marks: ticks(left, right, Math.max(3, box.width / 90)), of: xOf };
      frame(svg, box, x, { label: "rate (Hz)", marks: ticks(low, high, 4), of: yOf });
      for (const [current, recorded, model, isTest] of rows) {
        for (const [value, name] of [[recorded, "recorded"], [model, "model"]]) {
          const style = isTest ? name : `${name} hollow`;
          const at = { cx: xOf(current), cy: yOf(value), r: name === "recorded" ? 6 : 3.5, class: style };
          const dot = add(svg, "circle", at);
          add(dot, "title", {}, `${name}: ${short(value)} Hz at ${short(current)} pA`);
        }
      }
    }

    drawIntervals() {
      const svg = emptied(this.section.querySelector("svg.intervals"), 250);
      const { edges_ms: edges, recorded, model } = this.data.intervals;
      const box = { x: LEFT, y: TOP, width: plotWidth(svg), height: 250 - TOP - BOTTOM };
      const right = edges[edges.length - 1];
      const [, high] = range([0, ...recorded, ...model]);
      const xOf = linear(0, right, box.x, box.x + box.width);
      const yOf = linear(0, high, box.y + box.height, box.y);
      const marks = ticks(0, right, Math.max(3, box.width / 90));
      const x = { label: "interval (ms)", marks, of: xOf };
      frame(svg, box, x, { label: "share", marks: ticks(0, high, 4), of: yOf });
      for (const [shares, name] of [[recorded, "recorded"], [model, "model"]]) {
        const steps = shares.map((share, i) => `V${yOf(share).toFixed(1)}H${xOf(edges[i + 1]).toFixed(1)}`);
        const start = `M${xOf(edges[0]).toFixed(1)} ${yOf(0)}`;
        add(svg, "path", { d: `${start}${steps.join("")}V${yOf(0)}`, class: name });
      }
    }
  }

  // [share of the segment, value] of the points shown; of more than two a pixel, the extremes.
  function pointsOf(line, start, share, width) {
    const first = Math.max(0, Math.floor(start * line.full) - 1);
    const last = Math.min(line.n, Math.ceil((start + share) * line.full) + 1);
    const size = Math.max(1, Math.floor((last - first) / (2 * width)));
    const points = [];
    for (let i = first; i < last; i += size) {
      let [low, high] = [line.at(i), line.at(i)];
      for (let k = i + 1; k < Math.min(i + size, last); k += 1) {
        const value = line.at(k);
        if (!(value >= low)) low = Number.isNaN(value) ? low : value;
        if (!(value <= high)) high = Number.isNaN(value) ? high : value;
      }
      points.push([i / line.full, low]);
      if (high !== low && size > 1) points.push([i / line.full, high]);
    }
    return points;
  }

  // ---- drawn when they come into view, and again when their width changes

  const cells = new Map(); // section → promise of its cell

  async function drawCell(section) {
    if (!cells.has(section)) {
      const stored = JSON.parse(section.querySelector("script.traces").textContent);
      cells.set(section, unpacked(stored).then((data) => new Cell(section, data)));
    }
    (await cells.get(section)).draw();
  }

  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !cells.has(target)) drawCell(target);
    }
  }, { rootMargin: "600px" });

  for (const section of document.querySelectorAll("section.cell")) {
    const svg = section.querySelector("svg.time");
    svg.style.height = `${timeHeight(svg)}px`; // so that links to later sections stay right
    near.observe(section);
  }

  let width = 0;
  const main = document.querySelector("main");
  new ResizeObserver(() => {
    if (main.clientWidth === width) return;
    width = main.clientWidth;
    drawScores();
    drawDistributions();
    for (const section of cells.keys()) drawCell(section);
  }).observe(main);
})();
