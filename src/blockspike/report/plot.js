"use strict";
// Drawing in SVG, shared by the viewers of networks and of fits.
const plot = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function add(parent, name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }

  // Bytes of base64, and the numbers that they are.
  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const numbers = (text, kind) => new kind(bytesOf(text).buffer);

  const withMinus = (text) => text.replaceAll("-", "−");

  // About `count` round numbers from low to high.
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const first = Math.ceil(low / step - 1e-9);
    const last = Math.floor(high / step + 1e-9);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return Array.from({ length: last - first + 1 }, (_, i) => {
      const value = (first + i) * step;
      return { value, text: withMinus(value.toFixed(digits)) };
    });
  }

  // A frame with its axes: `x` and `y` are { label, marks, of }, `of` gives pixels; `x` may be null.
  function frame(svg, box, x, y) {
    add(svg, "rect", { ...box, class: "axis", fill: "none" });
    const bottom = box.y + box.height;
    for (const { value, text } of y.marks) {
      const at = y.of(value);
      add(svg, "line", { x1: box.x - 4, x2: box.x, y1: at, y2: at, class: "axis" });
      add(svg, "text", { x: box.x - 8, y: at + 4, "text-anchor": "end" }, text);
    }
    const middle = box.y + box.height / 2;
    const turned = { x: 14, y: middle, transform: `rotate(-90 14 ${middle})` };
    add(svg, "text", { ...turned, "text-anchor": "middle" }, y.label);
    if (!x) return;
    for (const { value, text } of x.marks) {
      const at = x.of(value);
      add(svg, "line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, class: "axis" });
      add(svg, "text", { x: at, y: bottom + 18, "text-anchor": "middle" }, text);
    }
    const below = { x: box.x + box.width / 2, y: bottom + 34, "text-anchor": "middle" };
    add(svg, "text", below, x.label);
  }

  // A scale from the numbers low…high to the pixels first…last.
  const linear = (low, high, first, last) => (value) =>
    first + ((value - low) / (high - low || 1)) * (last - first);

  return { add, bytesOf, numbers, ticks, frame, linear, withMinus };
})();
