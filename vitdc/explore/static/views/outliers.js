/** Images that do not look like the others of their cluster. */

import { choice, h, images } from "../dom.js";
import { Grid } from "../grid.js";

const MOST = 2000;

const KINDS = {
  unsure: ["Unsure", "The least typical of their cluster first: what vitdc predict calls unsure. The number says how far beyond the limit, which one image in 20 like those of the run exceeds.", "No image is unsure."],
  far: ["Farthest", "The largest distances to the centroid, whatever the cluster.", "There is no image."],
  against: ["Other class", "Of another class than the most frequent one of the cluster; the most typical of the cluster first.", "No image is of another class than most of its cluster."],
  wrong: ["Marked wrong", "What you marked. W marks the image shown beside, or takes the mark away.", "No image is marked wrong. W marks one."],
};
const TOO_FEW = "There are too few images to tell which are unsure.";

export async function showOutliers(app, host, [kind = "unsure"]) {
  const { store } = app;
  const kinds = Object.entries(KINDS).filter(([value]) => value !== "against" || store.run.has_labels);
  const chosen = kinds.some(([value]) => value === kind) ? kind : "unsure";
  const [title, about, none] = KINDS[chosen];
  const atypicality = chosen === "unsure" ? await store.atypicality() : null;
  const beyond = (image) => atypicality[image] / (store.run.unsure_limit ?? Infinity);
  // the only image of its cluster is like no other
  const times = (image) => (Number.isFinite(beyond(image)) ? `${beyond(image).toFixed(2)} ×` : "alone");
  const caption = chosen === "unsure" ? times : (image) => store.distance[image].toFixed(3);
  const empty = chosen === "unsure" && store.run.unsure_limit === null ? TOO_FEW : none;
  const grid = new Grid({ app, label: title, caption, empty });
  const found = h("p", { class: "muted found", role: "status" });
  const find = () => {
    if (chosen === "wrong") return store.marked();
    const byDistance = Array.from(store.byDistance);
    if (chosen === "unsure") return byDistance.filter((image) => beyond(image) > 1).sort((a, b) => atypicality[b] - atypicality[a] || 0); // inf - inf is NaN
    if (chosen === "far") return byDistance.reverse();
    return byDistance.filter((image) => store.isAgainstMajority(image));
  };
  const fill = (options) => {
    const all = find();
    grid.show(all.slice(0, MOST), options);
    found.textContent = chosen === "far" ? `the first ${images(Math.min(MOST, all.length))}` : images(all.length) + (all.length > MOST ? `, the first ${MOST} are shown` : "");
  };
  host.replaceChildren(
    h("header", { class: "heading" }, h("h1", {}, "Outliers"), h("p", { class: "muted" }, about)),
    h("div", { class: "filters" },
      choice({ label: "Which", chosen, options: kinds.map(([value, [text]]) => [value, text]), onchoose: (value) => { location.hash = `#outliers/${value}`; } }), found),
    grid.element);
  fill(); // in its place, where it knows its width
  return { grid, refresh: () => { if (chosen === "wrong") fill({ keep: true }); }, close: () => grid.close() };
}
