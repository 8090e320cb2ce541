// The page: its panels, its buttons, and when it is drawn.

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const panel of panels) {
      const box = panel.canvas.getBoundingClientRect();
      panel.stale = box.bottom < -200 || box.top > innerHeight + 200;
      if (!panel.stale) paint(panel);
    }
  });
}

function resize(factor) {
  const most = Math.max(...panels.map((panel) => panel.ranks.length));
  view.rowHeight = Math.max(2, Math.min(64, 15000 / most, view.rowHeight * factor));
  for (const panel of panels) panel.canvas.style.height = `${layout(panel).height}px`;
  redraw();
}

function sectionOf(panel) {
  const count = panel.start.length.toLocaleString("en");
  panel.canvas = element("canvas", {
    tabIndex: 0, role: "application",
    "aria-label": `${panel.title}: ${count} instructions on ${panel.ranks.length} ${panel.unit_of_rank}s. Arrow keys choose one.`,
  });
  panel.crowded = element("p", { className: "note", hidden: true }, "Too many transfers for arrows here: zoom in to see them.");
  const forwards = panel.start.map((_, row) => (panel.kind[row] === FORWARD ? panel.until[row] - panel.start[row] : 0)).filter((took) => took > 0).sort();
  panel.usual = forwards.length ? forwards[forwards.length >> 1] : panel.length;
  const named = panels.length === 1 && panel.title === source.title;
  const section = element("section", {},
    element("h2", { hidden: named }, panel.title), element("p", { className: "note" }, panel.note),
    element("div", { className: "frame" }, panel.canvas), panel.crowded);
  if (panel.marks.length) section.append(marksOf(panel));
  if (panel.breakdown) section.append(breakdownOf(panel));
  return section;
}

function open() {
  readStyle();
  document.getElementById("panels").replaceChildren(...panels.map(sectionOf));
  legendOf();
  const most = Math.max(...panels.map((panel) => panel.ranks.length));
  view.rowHeight = Math.max(4, Math.min(34, 760 / most, 15000 / most));
  panels.forEach(listen);
  resize(1);
  const buttons = {
    "zoom-in": () => zoom(1 / 1.5, (view.from + view.to) / 2),
    "zoom-out": () => zoom(1.5, (view.from + view.to) / 2),
    fit: () => show(0, 1), lower: () => resize(1 / 1.25), taller: () => resize(1.25), next: nextFinding,
  };
  for (const id in buttons) document.getElementById(id).addEventListener("click", buttons[id]);
  document.getElementById("next").hidden = !panels.some((panel) => panel.marks.some((mark) => mark.start !== null));
  document.getElementById("transfers").addEventListener("change", (event) => {
    view.transfers = event.target.checked;
    for (const panel of panels) panel.crowded.hidden = true;
    redraw();
  });
  addEventListener("resize", redraw);
  addEventListener("scroll", () => { if (panels.some((panel) => panel.stale)) redraw(); }, { passive: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    style.pattern = null;
    readStyle();
    redraw();
  });
  document.documentElement.dataset.ready = "true";
}

open();
