// The part of the time axis that all panels show, as fractions of the longest of its unit.

const extents = {};
for (const panel of panels) {
  extents[panel.unit] = Math.max(extents[panel.unit] || 0, panel.length, 1e-12);
}
const NARROWEST = 1e-7;
const view = { from: 0, to: 1, rowHeight: 0, transfers: true };

function zoom(factor, around) {
  const width = Math.min(1, Math.max(NARROWEST, (view.to - view.from) * factor));
  const share = (around - view.from) / (view.to - view.from);
  show(around - share * width, width);
}

function show(from, width) {
  view.from = Math.max(0, Math.min(1 - width, from));
  view.to = Math.min(1, view.from + width);
  redraw();
}

function pan(share) { show(view.from + share * (view.to - view.from), view.to - view.from); }

// Bring a stretch of a panel's time into view, wide enough to be read.
function reveal(panel, start, end, wide) {
  const extent = extents[panel.unit];
  const [from, to] = [start / extent, end / extent];
  if (!wide && from >= view.from && to <= view.to) { redraw(); return; }
  const width = wide ? Math.min(1, Math.max((to - from) * 8, NARROWEST * 20)) : view.to - view.from;
  show((from + to) / 2 - width / 2, width);
}

// A panel's times and the pixels of its canvas.
function scaleOf(panel, left, right) {
  const extent = extents[panel.unit];
  const start = view.from * extent;
  const perPixel = ((view.to - view.from) * extent) / Math.max(1, right - left);
  return {
    left, right, start, stop: view.to * extent, perPixel,
    x: (time) => left + (time - start) / perPixel,
    time: (x) => start + (x - left) * perPixel,
  };
}

// Round distances between ticks, 1, 2 or 5 times a power of ten, at least `pixels` apart.
function ticks(panel, scale, pixels) {
  const rough = scale.perPixel * pixels;
  const power = 10 ** Math.floor(Math.log10(rough));
  let distance = power * [1, 2, 5, 10].find((times) => power * times >= rough);
  if (panel.unit === "steps") distance = Math.max(1, distance);
  const found = [];
  const last = Math.min(scale.stop, panel.length);
  for (let number = Math.ceil(scale.start / distance); number * distance <= last && found.length < 200; number++) {
    found.push(number * distance);
  }
  return { distance, times: found };
}

const UNITS = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]];

function unitOf(size) { return UNITS.find(([each]) => size >= each) || (size ? UNITS[3] : UNITS[0]); }

// A time to six digits, in the unit that fits it.
function timeText(time) {
  const [factor, name] = unitOf(Math.abs(time));
  return `${Number((time / factor).toPrecision(6))} ${name}`;
}

// One of several times up to `largest`, in one unit for all, exact to `precision`.
function alike(time, largest, precision) {
  if (!time) return "0";
  const [factor, name] = unitOf(largest);
  const digits = Math.max(0, Math.min(9, Math.ceil(-Math.log10(precision / factor) - 1e-9)));
  return `${(time / factor).toFixed(digits)} ${name}`;
}
