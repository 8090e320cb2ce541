// Where the time of each stage went, as a table with a bar for each.

const SPENT = ["forward", "data", "receive", "send", "other", "idle"];
const CLASSES = { data: "load", receive: "receive", send: "send", other: "other", idle: "bubble" };

function breakdownOf(panel) {
  const spent = panel.breakdown;
  const lines = spent.ranks.flatMap((rank) => linesOf(panel, rank, spent));
  const head = element("tr", {}, ...["", "", ...SPENT].map((text) => element("th", {}, text)));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
  const least = spent.bottleneck === null ? "" : `: stage ${spent.bottleneck} is the bottleneck`;
  const summary = element("summary", {}, `Where the time went${least}`);
  return element("details", { open: panels.length <= 2 && lines.length <= 8 }, summary, element("div", { className: "scroll" }, table));
}

// A line for each stage; what is no stage's stands with the first of its rank.
function linesOf(panel, rank, spent) {
  const stages = rank.stages.length ? rank.stages : [{ stage_id: null, forward: 0, data: 0, receive: 0, send: 0 }];
  return stages.map((stage, number) => {
    const own = number ? {} : { other: rank.other, idle: rank.idle };
    const name = stage.stage_id === null ? `rank ${rank.rank}` : `stage ${stage.stage_id}`;
    const where = panel.staged ? `${name}, rank ${rank.rank}` : name;
    const values = { ...stage, ...own };
    const cells = SPENT.map((key) => element("td", {}, values[key] === undefined ? "" : alike(values[key], spent.seconds, spent.seconds * 1e-4)));
    const bottleneck = stage.stage_id !== null && stage.stage_id === spent.bottleneck;
    return element("tr", { className: bottleneck ? "bottleneck" : "" }, element("td", {}, where), sharesOf(panel, stage, values, spent.seconds), ...cells);
  });
}

function sharesOf(panel, stage, values, seconds) {
  const bar = element("div", { className: "shares" });
  for (const key of SPENT) {
    const part = element("span", { className: CLASSES[key] || "", title: key });
    part.style.width = `${seconds ? (100 * (values[key] || 0)) / seconds : 0}%`;
    if (key === "forward") part.style.background = fills.get(stage.stage_id) || "";
    bar.append(part);
  }
  return element("td", { className: "share" }, bar);
}
