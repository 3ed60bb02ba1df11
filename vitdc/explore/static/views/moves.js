/** What moved between the rounds: which images changed cluster, from where to where. */

import { choice, count, h, images, percent } from "../dom.js";
import { Grid } from "../grid.js";
import { css } from "../store.js";

export async function showMoves(app, host, [step]) {
  const { store } = app;
  const { best_round: best, rounds } = store.run;
  const single = Array.from({ length: rounds.length - 1 }, (_, round) => [`${round}-${round + 1}`, `${round} → ${round + 1}`]);
  const steps = best > 1 ? [[`0-${best}`, "First to result"], ...single] : single; // else it is one of these
  if (!steps.length) { host.replaceChildren(h("header", { class: "heading" }, h("h1", {}, "Moves")), h("p", { class: "empty" }, "There was only one round.")); return null; }
  const chosen = steps.some(([value]) => value === step) ? step : steps[0][0];
  const [from, to] = chosen.split("-").map(Number);
  const [before, after] = await Promise.all([store.round(from), store.round(to)]);
  const flows = collect(before, after);
  const moved = flows.reduce((sum, flow) => sum + flow.images.length, 0);
  const grid = new Grid({ app, label: "Images that moved", caption: (image) => `${before[image]} → ${after[image]}` });
  const list = h("div", { class: "flows", role: "group", "aria-label": "From which cluster to which" });
  const choose = (flow) => {
    for (const button of list.children) button.setAttribute("aria-pressed", String(button.flow === flow));
    grid.show(flow ? flow.images : flows.flatMap((each) => each.images));
  };
  const buttons = [null, ...flows].map((flow) => flowButton(store, flow, { moved, largest: flows[0]?.images.length ?? 1, onclick: () => choose(flow) }));
  list.append(...buttons);
  host.replaceChildren(
    h("header", { class: "heading" }, h("h1", {}, "Moves"),
      h("p", { class: "muted", role: "status" }, `${images(moved)} (${percent(moved / store.run.num_images)}) changed cluster from round ${from} to round ${to}. Cluster numbers are matched between rounds.`)),
    h("div", { class: "filters" }, choice({ label: "Rounds", chosen, options: steps, onchoose: (value) => { location.hash = `#moves/${value}`; } })),
    moved ? h("div", { class: "split" }, list, grid.element) : h("p", { class: "empty" }, "Nothing moved between these rounds."));
  choose(null);
  return { grid, close: () => grid.close() };
}

/** [{from, to, images}], the largest first. */
function collect(before, after) {
  const flows = new Map();
  before.forEach((from, image) => {
    if (from === after[image]) return;
    const key = `${from}-${after[image]}`;
    if (!flows.has(key)) flows.set(key, { from, to: after[image], images: [] });
    flows.get(key).images.push(image);
  });
  return [...flows.values()].sort((a, b) => b.images.length - a.images.length || a.from - b.from || a.to - b.to);
}

function flowButton(store, flow, { moved, largest, onclick }) {
  const end = (cluster) => h("span", { class: "end" }, h("i", { class: "dot", style: { background: css(store.palette[cluster]) } }), store.corrections.names[cluster] ?? `Cluster ${cluster}`);
  const content = flow
    ? [end(flow.from), h("span", { class: "arrow", "aria-label": "to" }, "→"), end(flow.to), h("span", { class: "number" }, count(flow.images.length)),
      h("span", { class: "bar", style: { width: `${(100 * flow.images.length) / largest}%` } })]
    : [h("span", { class: "end" }, "All moves"), h("span", { class: "number" }, count(moved))];
  const button = h("button", { type: "button", class: "flow", "aria-pressed": "false", onclick }, content);
  button.flow = flow;
  return button;
}
