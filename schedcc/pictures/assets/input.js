// Mouse, touch and keys.

const chosen = { panel: null, row: -1 };
const fingers = new Map();
let pinched = 0, moved = false;

function listen(panel) {
  const { canvas } = panel;
  canvas.addEventListener("wheel", (event) => wheel(panel, event), { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
    moved = false;
  });
  canvas.addEventListener("pointermove", (event) => drag(panel, event));
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      pinched = 0;
      if (name === "pointerup" && !moved) choose(panel, rowAt(panel, event), event.clientX, event.clientY);
    });
  }
  canvas.addEventListener("pointerleave", () => { if (chosen.panel !== panel) hush(); });
  canvas.addEventListener("dblclick", () => show(0, 1));
  canvas.addEventListener("keydown", (event) => key(panel, event));
}

function fractionAt(panel, x) {
  const { scale } = layout(panel);
  return scale.time(x - panel.canvas.getBoundingClientRect().left) / extents[panel.unit];
}

function wheel(panel, event) {
  if (event.ctrlKey || event.metaKey) {
    event.preventDefault();
    hush();
    zoom(Math.exp(event.deltaY * 0.004), fractionAt(panel, event.clientX));
  } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    event.preventDefault();
    hush();
    pan((event.deltaX || event.deltaY) / panel.canvas.clientWidth);
  }
}

function drag(panel, event) {
  const before = fingers.get(event.pointerId);
  if (!before) { hover(panel, event); return; }
  const shift = event.clientX - before.clientX;
  if (fingers.size === 1 && (moved || Math.abs(shift) > 3)) {
    moved = true;
    hush();
    pan(-shift / layout(panel).scale.right);
    fingers.set(event.pointerId, event);
  } else if (fingers.size === 2) {
    moved = true;
    fingers.set(event.pointerId, event);
    const [one, two] = [...fingers.values()].map((finger) => finger.clientX);
    const distance = Math.max(10, Math.abs(one - two));
    if (pinched) zoom(pinched / distance, fractionAt(panel, (one + two) / 2));
    pinched = distance;
  }
}

function rowAt(panel, event) {
  const box = panel.canvas.getBoundingClientRect(), { scale } = layout(panel);
  const index = Math.floor((event.clientY - box.top - RULER) / view.rowHeight);
  const x = event.clientX - box.left;
  if (index < 0 || index >= panel.ranks.length || x < scale.left) return -1;
  return panel.nearest(index, scale.time(x), 4 * scale.perPixel);
}

function hover(panel, event) {
  const row = rowAt(panel, event);
  if (row >= 0) tell(panel, row, event.clientX, event.clientY); else hush();
}

function choose(panel, row, x, y) {
  Object.assign(chosen, { panel: row >= 0 ? panel : null, row });
  if (row >= 0 && x !== undefined) tell(panel, row, x, y);
  if (row < 0) hush();
  redraw();
}

// Choose an instruction and tell of it beside its box.
function step(panel, row) {
  choose(panel, row);
  reveal(panel, panel.start[row], panel.until[row], false);
  tellChosen(panel);
}

function tellChosen(panel) {
  const { row } = chosen;
  if (chosen.panel !== panel || row < 0) return;
  const box = panel.canvas.getBoundingClientRect(), { scale } = layout(panel);
  const middle = scale.x((Math.max(panel.start[row], scale.start) + Math.min(panel.until[row], scale.stop)) / 2);
  tell(panel, row, box.left + middle, box.top + rowTop(panel.rankOf[row]) + view.rowHeight / 2);
}

function visit(panel, mark) {
  const index = mark.rank === null ? 0 : panel.indexOfRank.get(mark.rank);
  panel.canvas.scrollIntoView({ block: "nearest" });
  reveal(panel, mark.start, mark.end, true);
  const row = panel.nearest(index, mark.start, Infinity);
  if (row >= 0) step(panel, row);
  panel.canvas.focus({ preventScroll: true });
}

let visited = -1;
function nextFinding() {
  const all = panels.flatMap((panel) => panel.marks.filter((m) => m.start !== null).map((m) => [panel, m]));
  if (all.length) visit(...all[(visited = (visited + 1) % all.length)]);
}

function neighbour(panel, direction) {
  const { row } = chosen.panel === panel ? chosen : { row: -1 };
  if (row < 0) return panel.nearest(0, view.from * extents[panel.unit], Infinity);
  const index = panel.rankOf[row], rank = panel.ranks[index];
  if (direction === "ArrowLeft") return Math.max(rank.first, row - 1);
  if (direction === "ArrowRight") return Math.min(rank.stop - 1, row + 1);
  const other = index + (direction === "ArrowUp" ? -1 : 1);
  const middle = (panel.start[row] + panel.until[row]) / 2;
  const found = panel.ranks[other] ? panel.nearest(other, middle, Infinity) : -1;
  return found >= 0 ? found : row;
}

function otherEnd(panel) {
  const arrow = chosen.panel === panel ? panel.arrowOf[chosen.row] : -1;
  if (arrow === undefined || arrow < 0) return;
  const { send, receive } = panel.arrows;
  step(panel, send[arrow] === chosen.row ? receive[arrow] : send[arrow]);
}

function key(panel, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const middle = chosen.panel === panel && chosen.row >= 0
    ? panel.start[chosen.row] / extents[panel.unit] : (view.from + view.to) / 2;
  const around = Math.min(view.to, Math.max(view.from, middle));
  const actions = {
    "+": () => zoom(1 / 1.5, around), "=": () => zoom(1 / 1.5, around), "-": () => zoom(1.5, around),
    0: () => show(0, 1), "[": () => resize(1 / 1.25), "]": () => resize(1.25),
    f: nextFinding, t: () => otherEnd(panel), Escape: () => choose(panel, -1),
  };
  let action = actions[event.key];
  if (event.key.startsWith("Arrow")) {
    const share = { ArrowLeft: -0.2, ArrowRight: 0.2 }[event.key];
    action = event.shiftKey && share ? () => pan(share) : () => step(panel, neighbour(panel, event.key));
  }
  if (!action || !panel.start.length) return;
  event.preventDefault();
  action();
  tellChosen(panel);
}
