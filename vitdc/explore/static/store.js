/**
 * All that the page knows: a few numbers per image, and what a person said about the clusters.
 *
 * Events: "corrections" after names, merges or marks changed.
 */

import * as api from "./api.js";
import { images, toast } from "./dom.js";

export class Store extends EventTarget {
  #rounds = new Map();
  #groups = null;
  #undo = [];
  #channel = new BroadcastChannel("vitdc-corrections");

  static async open() {
    const store = new Store();
    store.run = await api.getJson("api/run");
    api.belongTo(store.run.clustering);
    [store.cluster, store.distance, store.label, store.corrections] = await Promise.all([
      api.getArray("api/columns/cluster", Int32Array),
      api.getArray("api/columns/distance", Float32Array),
      api.getArray("api/columns/label", Int32Array),
      api.getJson("api/annotations"),
    ]);
    store.#index();
    store.#channel.onmessage = () => store.refresh();
    addEventListener("focus", () => store.refresh());
    return store;
  }

  /** How unlike the others of its cluster every image is, (N,), in deviations. */
  atypicality() {
    this.atypical ??= api.getArray("api/columns/atypicality", Float32Array);
    return this.atypical;
  }

  /** Clusters after a round, (N,). */
  round(number) {
    if (!this.#rounds.has(number)) this.#rounds.set(number, api.getArray(`api/rounds/${number}`, Int32Array));
    return this.#rounds.get(number);
  }

  // --- what images and clusters are called ------------------------------------------------------

  isTrain(image) { return image < this.run.num_train; }
  isWrong(image) { return this.wrong.has(image); }
  labelName(image) { return this.label[image] >= 0 ? this.run.class_names[this.label[image]] : null; }

  /** The cluster that this one counts as. */
  target(cluster) {
    while (cluster in this.corrections.merged) cluster = this.corrections.merged[cluster];
    return Number(cluster);
  }

  title(cluster) {
    const target = this.target(cluster);
    return this.corrections.names[target] ?? `Cluster ${target}`;
  }

  color(cluster) { return this.palette[this.target(cluster)]; }

  // --- groups: clusters after merging -------------------------------------------------------------

  /** A group per cluster that was not merged into another, by id. */
  groups() {
    this.#groups ??= this.#collect();
    return this.#groups;
  }

  group(cluster) { return this.groups().get(this.target(cluster)); }

  /** Share of the labelled images whose class is the most frequent one of their group. */
  purity() {
    let right = 0, known = 0;
    for (const group of this.groups().values()) { right += group.counts[group.majority] ?? 0; known += group.known; }
    return known ? right / known : null;
  }

  isAgainstMajority(image) {
    const group = this.group(this.cluster[image]);
    return this.label[image] >= 0 && this.label[image] !== group.majority;
  }

  #collect() {
    const groups = new Map();
    const targets = Array.from({ length: this.run.num_clusters }, (_, cluster) => this.target(cluster));
    targets.forEach((target, cluster) => {
      if (!groups.has(target)) groups.set(target, { id: target, parts: [], members: [], counts: {}, known: 0, majority: null, purity: null });
      groups.get(target).parts.push(cluster);
    });
    for (const image of this.byDistance) {
      const group = groups.get(targets[this.cluster[image]]);
      group.members.push(image);
      if (this.label[image] >= 0) {
        group.known += 1;
        group.counts[this.label[image]] = (group.counts[this.label[image]] ?? 0) + 1;
      }
    }
    for (const group of groups.values()) {
      const ranked = Object.entries(group.counts).sort((a, b) => b[1] - a[1]);
      group.ranked = ranked.map(([label, number]) => [Number(label), number]);
      if (ranked.length) { group.majority = group.ranked[0][0]; group.purity = group.ranked[0][1] / group.known; }
    }
    return groups;
  }

  #index() {
    this.byDistance = Uint32Array.from({ length: this.run.num_images }, (_, image) => image);
    this.byDistance.sort((a, b) => this.distance[a] - this.distance[b]);
    this.palette = palette(this.run.num_clusters);
    this.labelPalette = palette(this.run.class_names.length);
    this.#accept(this.corrections);
  }

  // --- corrections --------------------------------------------------------------------------------

  #accept(state) {
    this.corrections = state;
    this.wrong = new Set(state.wrong);
    this.#groups = null;
  }

  /** Show what another tab or program changed. */
  async refresh() {
    const state = await api.getJson("api/annotations").catch(() => null);
    if (state && state.revision !== this.corrections.revision) {
      this.#accept(state);
      this.dispatchEvent(new Event("corrections"));
    }
  }

  /** Change names, merges or marks, and offer to undo it. `said` is what was done, for people. */
  async change(patch, said, { undoing = false } = {}) {
    try {
      const { state, undo } = await this.#send(patch);
      this.#accept(state);
      if (!undoing) this.#undo.push([undo, said]);
      this.dispatchEvent(new Event("corrections"));
      this.#channel.postMessage(state.revision);
      toast(said, undoing ? {} : { action: "Undo", onaction: () => this.undo() });
      return true;
    } catch (error) {
      toast(error.message, { kind: "bad" });
      return false;
    }
  }

  /** Send a patch; if the file changed meanwhile, only where it did not touch the same values. */
  async #send(patch) {
    const seen = this.corrections;
    try {
      return await api.postJson("api/annotations", { revision: seen.revision, patch });
    } catch (error) {
      if (error.status !== 409) throw error;
      const now = error.body.state;
      this.#accept(now);
      this.dispatchEvent(new Event("corrections"));
      if (touches(patch, seen, now)) throw new Error("Another tab changed the same thing; look at it and try again");
      return api.postJson("api/annotations", { revision: now.revision, patch });
    }
  }

  async undo() {
    const last = this.#undo.pop();
    if (!last) toast("Nothing to undo");
    else if (!(await this.change(last[0], `Undone: ${last[1]}`, { undoing: true }))) this.#undo.push(last);
  }

  name(cluster, name) {
    const said = name ? `Cluster ${cluster} is called “${name}”` : `Cluster ${cluster} has no name any more`;
    return this.change({ names: { [cluster]: name || null } }, said);
  }

  merge(cluster, into) {
    return this.change({ merged: { [cluster]: into } }, `${this.title(cluster)} merged into ${this.title(into)}`);
  }

  separate(cluster) { return this.change({ merged: { [cluster]: null } }, `Cluster ${cluster} stands alone again`); }

  mark(numbers, wrong) {
    const marks = Object.fromEntries(numbers.map((image) => [image, wrong]));
    return this.change({ wrong: marks }, `${images(numbers.length)} ${wrong ? "marked wrong" : "no longer marked"}`);
  }

  /** Marks them wrong, unless all of them are already. */
  toggleMark(numbers) {
    if (numbers.length) return this.mark(numbers, !numbers.every((image) => this.isWrong(image)));
  }
}

/** Whether the values that a patch changes differ between two states. */
function touches(patch, one, other) {
  const differs = (key) => Object.keys(patch[key] ?? {}).some((id) => one[key][id] !== other[key][id]);
  const [before, after] = [new Set(one.wrong), new Set(other.wrong)];
  const marks = Object.keys(patch.wrong ?? {}).map(Number);
  return differs("names") || differs("merged") || marks.some((image) => before.has(image) !== after.has(image));
}

/** The report's colours of clusters: hues all around but vermilion, in three alternating shades,
 * the darkest a little lighter, because they have to be seen on a dark page too. */
function palette(number) {
  const shades = [[58, 47], [52, 64], [50, 53]];
  return Array.from({ length: number }, (_, cluster) => {
    const [saturation, lightness] = shades[cluster % 3];
    return hslToRgb((50 + (310 * cluster) / Math.max(1, number)) % 360, saturation / 100, lightness / 100);
  });
}

function hslToRgb(hue, saturation, lightness) {
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - saturation * Math.min(lightness, 1 - lightness) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [part(0), part(8), part(4)];
}
export const css = (rgb) => `rgb(${rgb.join(" ")})`;
