// What is drawn over the boxes: transfers, findings, the chosen instruction.

function bubble(pen) {
  if (style.pattern) return style.pattern;
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const ink = tile.getContext("2d");
  ink.fillStyle = style.bubble;
  ink.fillRect(0, 0, 8, 8);
  ink.strokeStyle = style.hatch;
  for (const shift of [-8, 0, 8]) {
    ink.beginPath();
    ink.moveTo(shift - 1, 9);
    ink.lineTo(shift + 9, -1);
    ink.stroke();
  }
  style.pattern = pen.createPattern(tile, "repeat");
  return style.pattern;
}

function paintArrows(panel, pen, scale) {
  const { send, receive, end } = panel.arrows, drawn = [];
  for (let arrow = 0; arrow < send.length; arrow++) {
    if (end[arrow] >= scale.start && panel.start[send[arrow]] <= scale.stop) drawn.push(arrow);
    if (drawn.length > MOST_ARROWS) break;
  }
  panel.crowded.hidden = drawn.length <= MOST_ARROWS;
  pen.strokeStyle = pen.fillStyle = style.arrow;
  if (drawn.length <= MOST_ARROWS && view.rowHeight >= 6) {
    pen.lineWidth = 1;
    pen.globalAlpha = drawn.length > 800 ? 0.3 : 0.65;
    for (const arrow of drawn) paintArrow(panel, pen, scale, arrow);
  }
  const own = chosen.panel === panel && chosen.row >= 0 ? panel.arrowOf[chosen.row] : -1;
  pen.globalAlpha = 1;
  if (own >= 0) {
    pen.lineWidth = 2;
    pen.strokeStyle = pen.fillStyle = style.focus;
    paintArrow(panel, pen, scale, own);
  }
}

function paintArrow(panel, pen, scale, arrow) {
  const { send, receive, end } = panel.arrows;
  const from = panel.rankOf[send[arrow]], to = panel.rankOf[receive[arrow]];
  const down = to > from, half = view.rowHeight / 2;
  const [x1, x2] = [scale.x(panel.start[send[arrow]]), scale.x(end[arrow])];
  const y1 = rowTop(from) + half + (down ? half * 0.5 : -half * 0.5);
  const y2 = rowTop(to) + half + (down ? -half * 0.5 : half * 0.5);
  const length = Math.hypot(x2 - x1, y2 - y1) || 1, head = Math.min(6, length * 0.6);
  const [dx, dy] = [((x2 - x1) / length) * head, ((y2 - y1) / length) * head];
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2 - dx, y2 - dy);
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x2, y2);
  pen.lineTo(x2 - dx - dy * 0.5, y2 - dy + dx * 0.5);
  pen.lineTo(x2 - dx + dy * 0.5, y2 - dy - dx * 0.5);
  pen.fill();
}

function paintMarks(panel, pen, scale) {
  for (const mark of panel.marks) {
    if (mark.start === null || mark.end < scale.start || mark.start > scale.stop) continue;
    const [left, right] = [scale.x(mark.start), scale.x(mark.end)];
    const top = rowTop(mark.rank === null ? 0 : panel.indexOfRank.get(mark.rank));
    const height = mark.rank === null ? rowTop(panel.ranks.length) - top : view.rowHeight;
    pen.strokeStyle = pen.fillStyle = style[mark.severity];
    pen.lineWidth = 2;
    pen.strokeRect(left - 1, top + 1, Math.max(right - left, 3) + 2, height - 2);
    pen.beginPath();
    pen.moveTo(left - 6, top - 3);
    pen.lineTo(left + 6, top - 3);
    pen.lineTo(left, top + 6);
    pen.fill();
  }
}

function outline(panel, pen, scale, row) {
  const left = scale.x(panel.start[row]), right = scale.x(panel.until[row]);
  pen.strokeStyle = style.focus;
  pen.lineWidth = 2.5;
  pen.strokeRect(left - 1, rowTop(panel.rankOf[row]) + 1, Math.max(right - left, 3) + 1, view.rowHeight - 2);
}
