// One panel on its canvas.

const RULER = 40, LABELLED = 13, MOST_ARROWS = 4000;
const style = {};

function readStyle() {
  const computed = getComputedStyle(document.documentElement);
  for (const name of ["paper", "ink", "faint", "line", "panel", "bubble", "hatch", "receive", "send", "load", "other", "arrow", "error", "warning", "focus"]) {
    style[name] = computed.getPropertyValue(`--${name}`).trim();
  }
  style.kinds = [style.other, style.receive, style.send, style.send, style.load, style.other];
}

function layout(panel) {
  const width = panel.canvas.clientWidth;
  const gutter = width < 600 ? 34 : 74;
  return { width, gutter, height: RULER + panel.ranks.length * view.rowHeight + 4, scale: scaleOf(panel, gutter, width - 12) };
}

function rowTop(index) { return RULER + index * view.rowHeight; }

function paint(panel) {
  const { canvas } = panel;
  const { width, height, gutter, scale } = layout(panel);
  const dots = Math.min(devicePixelRatio || 1, 16000 / height);
  const sizes = [Math.round(width * dots), Math.round(height * dots)];
  canvas.style.height = `${height}px`;
  if (canvas.width !== sizes[0] || canvas.height !== sizes[1]) [canvas.width, canvas.height] = sizes;
  const pen = canvas.getContext("2d");
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  pen.fillStyle = style.panel;
  pen.fillRect(0, 0, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(gutter, 0, width - gutter, height);
  pen.clip();
  paintRuler(panel, pen, scale);
  for (let index = 0; index < panel.ranks.length; index++) paintRank(panel, pen, scale, index);
  if (view.transfers) paintArrows(panel, pen, scale);
  paintMarks(panel, pen, scale);
  if (chosen.panel === panel && chosen.row >= 0) outline(panel, pen, scale, chosen.row);
  pen.restore();
  paintNames(panel, pen, gutter, height);
}

function paintRuler(panel, pen, scale) {
  const bottom = rowTop(panel.ranks.length);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  panel.phases.forEach((phase, number) => {
    const left = Math.max(scale.left, scale.x(phase.start)), right = Math.min(scale.right, scale.x(phase.end));
    if (right <= left) return;
    pen.fillStyle = number % 2 ? style.panel : style.bubble;
    pen.fillRect(left, 0, right - left, 18);
    pen.fillStyle = style.faint;
    if (pen.measureText(phase.name).width + 8 < right - left) pen.fillText(phase.name, left + 4, 9);
    pen.fillStyle = style.line;
    if (number) pen.fillRect(Math.round(scale.x(phase.start)), 0, 1, bottom);
  });
  const { distance, times } = ticks(panel, scale, 76);
  for (const time of times) {
    const x = Math.round(scale.x(time));
    pen.fillStyle = style.line;
    pen.fillRect(x, 32, 1, bottom - 32);
    pen.fillStyle = style.faint;
    const text = panel.unit === "steps" ? `step ${Math.round(time)}` : alike(time, Math.min(scale.stop, panel.length), distance);
    pen.fillText(text, Math.min(x + 3, scale.right - pen.measureText(text).width), 26);
  }
}

function paintRank(panel, pen, scale, index) {
  const top = rowTop(index), height = view.rowHeight, gap = height > 9 ? 2 : 0.5;
  const right = Math.min(scale.right, scale.x(panel.length)), left = Math.max(scale.left, scale.x(0));
  pen.fillStyle = bubble(pen);
  pen.fillRect(left, top + gap, Math.max(0, right - left), height - 2 * gap);
  const full = height - 2 * gap, part = Math.max(1, full * 0.5);
  const { kind, start, until } = panel, stages = panel.columns.stage;
  const first = Math.max(panel.ranks[index].first, panel.after(index, scale.start) - 64);
  const stop = panel.after(index, scale.stop);
  let run = null;
  const flush = () => {
    if (!run) return;
    // Boxes of less than a pixel are drawn together, as pale as the bubbles among them.
    pen.globalAlpha = Math.max(0.15, Math.min(1, run.covered / Math.max(run.right - run.left, run.covered)));
    pen.fillStyle = run.fill;
    pen.fillRect(run.left, top + gap, Math.max(run.right - run.left, 0.6), full);
    pen.globalAlpha = 1;
    run = null;
  };
  for (let row = first; row < stop; row++) {
    if (until[row] < scale.start) continue;
    const from = scale.x(start[row]), wide = (until[row] - start[row]) / scale.perPixel;
    if (kind[row] !== FORWARD) {
      if (wide >= 1.5 || (kind[row] === POST && scale.perPixel * 12 < panel.usual)) {
        flush();
        paintPart(panel, pen, row, from, wide, top + gap + (full - part) / 2, part);
      }
      continue;
    }
    const fill = fills.get(stages[row]) || style.other;
    if (wide >= 3) {
      flush();
      paintForward(panel, pen, row, from, wide, top + gap, full, fill, scale);
    } else if (run && run.fill === fill && from - run.right < 1.5) {
      run.right = Math.max(run.right, from + wide);
      run.covered += wide;
    } else {
      flush();
      run = { left: from, right: from + wide, covered: wide, fill };
    }
  }
  flush();
}

function paintForward(panel, pen, row, from, wide, top, height, fill, scale) {
  pen.fillStyle = fill;
  pen.fillRect(from, top, wide > 5 ? wide - 1 : wide - 0.5, height);
  lettering(panel, pen, row, Math.max(from, scale.left), Math.min(from + wide, scale.right), top, height, dark.get(panel.columns.stage[row]) ? "#fff" : "#000");
}

function paintPart(panel, pen, row, from, wide, top, height) {
  const kind = panel.kind[row];
  pen.fillStyle = pen.strokeStyle = style.kinds[kind];
  if (kind === POST && wide === 0) {
    pen.fillRect(from, top - 1, 2, height + 2);
  } else if ((kind === SEND || kind === POST) && wide > 4 && height > 4) {
    pen.lineWidth = 1.2;
    pen.strokeRect(from + 0.6, top + 0.6, wide - 2.2, height - 1.2);
    lettering(panel, pen, row, from, from + wide, top, height, style.ink);
  } else {
    pen.fillRect(from, top, wide > 4 ? wide - 1 : wide, height);
    lettering(panel, pen, row, from, from + wide, top, height, kind === OTHER ? "#fff" : "#000");
  }
}

function lettering(panel, pen, row, left, right, top, height, colour) {
  const size = Math.min(12, height - 1);
  if (size < 9) return;
  const room = (right - left - 4) / (size * 0.58), label = panel.label(row);
  const short = panel.kind[row] === FORWARD ? String(panel.columns.micro_batch[row]) : "";
  const text = label.length <= room ? label : short.length <= room ? short : "";
  if (!text) return;
  pen.font = `${size}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  pen.textAlign = "center";
  pen.fillStyle = colour;
  pen.fillText(text, (left + right) / 2, top + height / 2 + 0.5);
  pen.textAlign = "left";
}

function paintNames(panel, pen, gutter, height) {
  pen.fillStyle = style.paper;
  pen.fillRect(0, 0, gutter - 1, height);
  pen.fillStyle = style.line;
  pen.fillRect(gutter - 1, 0, 1, height);
  pen.font = `${Math.min(12, Math.max(9, view.rowHeight - 2))}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  pen.fillStyle = style.ink;
  const every = Math.ceil(11 / view.rowHeight);
  panel.ranks.forEach((rank, index) => {
    const text = gutter < 50 ? String(rank.rank) : rank.name;
    if (index % every === 0) pen.fillText(text, gutter - 7, rowTop(index) + view.rowHeight / 2);
  });
  pen.textAlign = "left";
}
