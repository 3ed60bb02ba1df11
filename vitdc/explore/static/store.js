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
  #jobs = Promise.resolve();
  #refreshing = null;
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

  /** The image that an address names. */
  imageNumber(text) {
    const image = Number(text);
    if (!Number.isInteger(image) || image < 0 || image >= this.run.num_images) throw new Error(`There is no image ${text}; the last is ${this.run.num_images - 1}`);
    return image;
  }

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

  /** The images marked wrong, the most typical of their cluster first. */
  marked() { return [...this.wrong].sort((a, b) => this.distance[a] - this.distance[b] || a - b); }

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
      if (!groups.has(target)) groups.set(target, { id: target, parts: [], members: [], meanDistance: 0, counts: {}, known: 0, majority: null, purity: null });
      groups.get(target).parts.push(cluster);
    });
    for (const image of this.byDistance) {
      const group = groups.get(targets[this.cluster[image]]);
      group.members.push(image);
      group.meanDistance += this.distance[image];
      if (this.label[image] >= 0) {
        group.known += 1;
        group.counts[this.label[image]] = (group.counts[this.label[image]] ?? 0) + 1;
      }
    }
    for (const group of groups.values()) {
      group.meanDistance /= group.members.length || 1;
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
    const regrouped = !same(state.merged, this.corrections.merged);
    this.corrections = state;
    this.wrong = new Set(state.wrong);
    if (regrouped) this.#groups = null;
    this.dispatchEvent(new Event("corrections"));
  }

  /** Do jobs one after another, so that each decides on the state that the one before it left. */
  #next(job) {
    const done = this.#jobs.then(job).catch(complain);
    this.#jobs = done;
    return done;
  }

  /** Show what another tab or program changed. */
  refresh() {
    this.#refreshing ??= this.#next(async () => {
      this.#refreshing = null; // who asks from now on may know of something newer
      const state = await api.getJson("api/annotations");
      if (state.revision !== this.corrections.revision) this.#accept(state);
    });
    return this.#refreshing;
  }

  /** Change names, merges or marks, and offer to undo it: `decide` says what, as [patch, what was
   * done, for people], when it is its turn. */
  change(decide) {
    return this.#next(async () => {
      const [patch, said] = decide();
      const undo = await this.#send(patch);
      const entry = { undo, said, made: values(this.corrections, patch) };
      this.#undo.push(entry);
      toast(said, { action: "Undo", onaction: () => this.undo(entry) });
    });
  }

  /** Send a patch and accept what it leads to; returns the patch that undoes it. If the file changed
   * meanwhile, it is sent again unless the same values were changed. */
  async #send(patch) {
    for (;;) {
      const seen = this.corrections;
      try {
        const { state, undo } = await api.postJson("api/annotations", { revision: seen.revision, patch });
        this.#accept(state);
        this.#channel.postMessage(state.revision);
        return undo;
      } catch (error) {
        if (error.status !== 409) throw error;
        this.#accept(error.body.state);
        if (!same(values(seen, patch), values(this.corrections, patch))) throw new Error("Another tab changed the same thing; look at it and try again");
      }
    }
  }

  /** Undo one change, the last if none is given, unless somebody changed the same since. */
  undo(entry = null) {
    return this.#next(async () => {
      const last = this.#undo.at(-1);
      const chosen = entry ?? last;
      if (!this.#undo.includes(chosen)) { toast("Nothing to undo"); return; }
      const forget = () => this.#undo.splice(this.#undo.indexOf(chosen), 1);
      if (!same(values(this.corrections, chosen.undo), chosen.made)) {
        if (chosen === last) forget(); // else it would be in the way of those before it
        throw new Error(`Changed since, so it is not undone: ${chosen.said}`);
      }
      await this.#send(chosen.undo);
      forget();
      toast(`Undone: ${chosen.said}`);
    });
  }

  name(cluster, name) {
    const said = name ? `Cluster ${cluster} is called “${name}”` : `Cluster ${cluster} has no name any more`;
    return this.change(() => [{ names: { [cluster]: name || null } }, said]);
  }

  merge(cluster, into) {
    return this.change(() => [{ merged: { [cluster]: into } }, `${this.title(cluster)} merged into ${this.title(into)}`]);
  }

  separate(cluster) { return this.change(() => [{ merged: { [cluster]: null } }, `Cluster ${cluster} stands alone again`]); }

  mark(numbers, wrong) { return this.change(() => this.#marking(numbers, wrong)); }

  /** Marks them wrong, unless all of them are already. */
  toggleMark(numbers) {
    if (numbers.length) return this.change(() => this.#marking(numbers, !numbers.every((image) => this.isWrong(image))));
  }

  #marking(numbers, wrong) {
    const marks = Object.fromEntries(numbers.map((image) => [image, wrong]));
    return [{ wrong: marks }, `${images(numbers.length)} ${wrong ? "marked wrong" : "no longer marked"}`];
  }
}

/** What a state says about that which a patch changes. */
function values(state, patch) {
  const of = (key) => Object.keys(patch[key] ?? {}).map((id) => [id, state[key][id] ?? null]);
  const marked = new Set(state.wrong);
  const marks = Object.keys(patch.wrong ?? {}).map((image) => [image, marked.has(Number(image))]);
  return [of("names"), of("merged"), marks];
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function complain(error) {
  const reload = { action: "Reload", onaction: () => location.reload() };
  toast(error.message, { kind: "bad", seconds: 10, ...(error.status === 410 ? reload : {}) });
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
