// What the page draws: instructions as columns, rank after rank, each rank's by their starts.

const source = JSON.parse(document.getElementById("data").textContent);
const ops = source.ops;
const FORWARD = 0, RECEIVE = 1, SEND = 2, POST = 3, LOAD = 4, OTHER = 5;
const KINDS = {
  forward: FORWARD, receive: RECEIVE, send: SEND, "post-receive": POST, "post-send": POST,
  load: LOAD, other: OTHER,
};
const fills = new Map(source.colours.map((colour) => [colour.stage, colour.fill]));
const dark = new Map(source.colours.map((colour) => [colour.stage, colour.dark]));
const kindOfOp = Uint8Array.from(ops, (op) => KINDS[op.kind]);

class Panel {
  constructor(data) {
    Object.assign(this, data);
    const columns = data.columns;
    this.columns = {};
    // Ids of a plan with errors may be of any size.
    for (const name in columns) this.columns[name] = Float64Array.from(columns[name]);
    this.start = this.columns.start;
    this.kind = Uint8Array.from(columns.op, (op) => kindOfOp[op]);
    // A rank goes on from the start of a post: its transfer is an arrow, not a box.
    const timed = this.unit === "seconds";
    this.until = Float64Array.from(this.columns.end, (end, row) => (timed && this.kind[row] === POST ? this.start[row] : end));
    this.arrows = {
      send: Int32Array.from(data.arrows.send),
      receive: Int32Array.from(data.arrows.receive),
      end: Float64Array.from(data.arrows.end),
    };
    this.arrowOf = new Int32Array(this.start.length).fill(-1);
    this.arrows.send.forEach((row, arrow) => { this.arrowOf[row] = arrow; });
    this.arrows.receive.forEach((row, arrow) => { this.arrowOf[row] = arrow; });
    this.rankOf = new Int32Array(this.start.length);
    this.indexOfRank = new Map();
    this.ranks.forEach((rank, index) => {
      this.rankOf.fill(index, rank.first, rank.stop);
      this.indexOfRank.set(rank.rank, index);
    });
    this.staged = this.ranks.some((rank) => rank.stages.length > 1);
  }

  op(row) { return ops[this.columns.op[row]]; }

  // The first row of a rank that starts later than a time.
  after(index, time) {
    let { first: low, stop: high } = this.ranks[index];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.start[middle] <= time) low = middle + 1; else high = middle;
    }
    return low;
  }

  // The row of a rank that is drawn nearest to a time, no further away than `slack`; else -1.
  nearest(index, time, slack) {
    const { first, stop } = this.ranks[index], middle = this.after(index, time);
    let found = -1, least = slack, shortest = Infinity;
    for (let row = Math.max(first, middle - 64); row < Math.min(stop, middle + 64); row++) {
      const away = Math.max(0, this.start[row] - time, time - this.until[row]);
      const length = this.until[row] - this.start[row];
      if (away < least || (away === least && length < shortest)) {
        found = row; least = away; shortest = length;
      }
    }
    return found;
  }

  // As `schedcc show` has it: F3, with several stages on a rank 4F3.
  label(row) {
    const symbol = this.op(row).symbol;
    const stage = this.staged && symbol ? this.columns.stage[row] : "";
    return symbol ? `${stage}${symbol}${this.columns.micro_batch[row]}` : this.op(row).name;
  }
}

const panels = source.panels.map((data) => new Panel(data));
