/** Images that do not look like the others of their cluster. */

import { choice, h, images } from "../dom.js";
import { Grid } from "../grid.js";

const MOST = 2000;

const KINDS = {
  unsure: ["Unsure", "Less typical of their cluster than 95% of the images that were held out, the least typical first: what vitdc predict calls unsure. The number says how far beyond that limit."],
  far: ["Farthest", "The largest distances to the centroid, whatever the cluster."],
  against: ["Other class", "Of another class than the most frequent one of the cluster; the most typical of the cluster first."],
  wrong: ["Marked wrong", "What you marked. W marks the image under the cursor, or takes the mark away."],
};

export async function showOutliers(app, host, [kind = "unsure"]) {
  const { store } = app;
  const kinds = Object.entries(KINDS).filter(([value]) => value !== "against" || store.run.has_labels);
  const chosen = kind in KINDS ? kind : "unsure";
  const [, about] = KINDS[chosen];
  const atypicality = chosen === "unsure" ? await store.atypicality() : null;
  const beyond = (image) => atypicality[image] / (store.run.unsure_limit ?? Infinity);
  const caption = chosen === "unsure" ? (image) => `${beyond(image).toFixed(2)} ×` : (image) => store.distance[image].toFixed(3);
  const grid = new Grid({ store, label: KINDS[chosen][0], onopen: app.open, caption });
  const found = h("p", { class: "muted found", role: "status" });
  const find = () => {
    const byDistance = Array.from(store.byDistance);
    if (chosen === "unsure") return byDistance.filter((image) => beyond(image) > 1).sort((a, b) => beyond(b) - beyond(a));
    if (chosen === "far") return byDistance.reverse();
    return byDistance.filter((image) => (chosen === "wrong" ? store.isWrong(image) : store.isAgainstMajority(image)));
  };
  const fill = () => {
    const all = find();
    grid.show(all.slice(0, MOST));
    found.textContent = chosen === "far" ? `the first ${images(Math.min(MOST, all.length))}` : images(all.length) + (all.length > MOST ? `, the first ${MOST} are shown` : "");
  };
  fill();
  host.replaceChildren(
    h("header", { class: "heading" }, h("h1", {}, "Outliers"), h("p", { class: "muted" }, about)),
    h("div", { class: "filters" },
      choice({ label: "Which", chosen, options: kinds.map(([value, [text]]) => [value, text]), onchoose: (value) => { location.hash = `#outliers/${value}`; } }), found),
    grid.element);
  return { grid, refresh: () => { if (chosen === "wrong") fill(); }, close: () => grid.close() };
}
