// What the page says in words. Texts enter it as text only, never as HTML.

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const key in options) {
    if (key in made) made[key] = options[key]; else made.setAttribute(key, options[key]);
  }
  made.append(...children);
  return made;
}

function facts(panel, row) {
  const value = (name) => panel.columns[name][row];
  const found = [[panel.ranks[panel.rankOf[row]].name.replace(/ .*/, ""), String(panel.ranks[panel.rankOf[row]].rank)]];
  const add = (name, text) => found.push([name, text]);
  if (value("stage") >= 0 && found[0][0] !== "stage") add("stage", value("stage"));
  if (value("micro_batch") >= 0 && value("stage") >= 0) add("micro-batch", value("micro_batch"));
  if (value("buffer") >= 0) add("buffer", value("buffer"));
  if (panel.columns.run) add("run", value("run"));
  add("step", value("step") < 0 ? "epilogue" : value("step"));
  if (panel.unit === "seconds") {
    add("start", timeText(value("start")));
    add("end", timeText(value("end")));
    add("took", timeText(value("end") - value("start")));
  }
  const arrow = panel.arrowOf[row];
  if (arrow >= 0) {
    const sends = panel.arrows.send[arrow] === row;
    const other = panel.arrows[sends ? "receive" : "send"][arrow];
    add(sends ? "to" : "from", panel.ranks[panel.rankOf[other]].name);
    if (sends && panel.unit === "seconds") add("arrives", timeText(panel.arrows.end[arrow]));
  }
  return found;
}

function heading(panel, row) {
  const buffer = panel.columns.stage[row] >= 0;
  return `${panel.op(row).name}${buffer ? ` ${panel.columns.micro_batch[row]}` : ""}`;
}

function tell(panel, row, x, y) {
  const tip = document.getElementById("tip");
  const list = element("dl");
  for (const [name, text] of facts(panel, row)) {
    list.append(element("dt", {}, name), element("dd", {}, String(text)));
  }
  tip.replaceChildren(element("b", {}, heading(panel, row)), list);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
  const top = y + 16 + height > innerHeight ? y - 16 - height : y + 16;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function hush() { document.getElementById("tip").hidden = true; }

function legendOf() {
  const legend = document.getElementById("legend");
  const item = (swatch, text) => legend.append(element("span", {}, swatch, text));
  const swatch = (name) => element("i", { className: `swatch ${name}` });
  const stages = [...fills.keys()];
  if (stages.length > 8) {
    const scale = swatch("scale");
    scale.style.background = `linear-gradient(90deg, ${[...fills.values()].join(", ")})`;
    item(scale, `forward of stages ${stages[0]} to ${stages.at(-1)}`);
  } else {
    for (const [stage, fill] of fills) {
      const own = swatch("");
      own.style.background = fill;
      item(own, `forward of stage ${stage}`);
    }
  }
  const used = new Set(panels.flatMap((panel) => [...new Set(panel.kind)]));
  const rest = [[RECEIVE, "receive", "receive"], [SEND, "send", "send"], [LOAD, "load", "load"], [POST, "post", "post"], [OTHER, "other", "epilogue, other"]];
  for (const [kind, name, text] of rest) if (used.has(kind)) item(swatch(name), text);
  item(swatch("bubble"), "bubble");
  item(element("b", {}, "→"), "transfer");
  if (panels.some((panel) => panel.marks.length)) item(swatch("finding"), "finding");
}

function marksOf(panel) {
  const list = element("ul", { className: "marks" });
  for (const mark of panel.marks) {
    const placed = mark.start !== null;
    const entry = element(placed ? "button" : "span", { className: mark.severity }, mark.text);
    if (placed) entry.addEventListener("click", () => visit(panel, mark));
    list.append(element("li", {}, entry));
  }
  return list;
}
