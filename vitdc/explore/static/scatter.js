/**
 * A scatter plot of many points in WebGL2, with panning, zooming, picking and a lasso.
 *
 * Why not a library: plotly.js's scattergl, the one at hand, was tried with 60,000 points in
 * headless Chromium with software rendering on 2 busy cores. It dragged the map at 3 frames a
 * second, zoomed at 3 and followed the pointer at 11, after 4.6 s until the first picture, because
 * it lays the whole figure out anew on every event. Here a frame is one draw call: points and
 * colours stay in buffers, a pan or a zoom changes four numbers. Where even that is too slow (no
 * graphics card), fewer points are drawn while something moves, and all of them when it rests.
 */

const VERTEX = `#version 300 es
in vec2 place; in vec4 color;
uniform vec2 scale, offset; uniform float size;
out vec4 ink; out float diameter;
void main() {
  gl_Position = vec4(place * scale + offset, 0, 1);
  gl_PointSize = diameter = size * (color.a > 0.5 ? 1.0 : 0.8);
  ink = color;
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 ink; in float diameter; out vec4 result;
void main() {
  vec2 from = gl_PointCoord - 0.5;
  float cover = clamp((0.5 - length(from)) * diameter, 0.0, 1.0);
  if (cover == 0.0) discard;
  result = vec4(ink.rgb, 1) * (ink.a * cover);
}`;
const CELLS = 200; // of the index, along each side
const MAX_ZOOM = 80;
const FEWEST = 4000; // points, while something moves
const SLOW = 26; // ms between two frames
const REST = 140; // ms

export class Scatter {
  /** onhover(image or null, x, y), onlasso(images), onpick(image); x and y in CSS pixels. */
  constructor(canvas, overlay, { onhover, onlasso, onpick }) {
    Object.assign(this, { canvas, overlay, onhover, onlasso, onpick });
    this.gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, stencil: false });
    if (!this.gl) throw new Error("This browser has no WebGL2, which the map needs");
    this.view = { x: 0, y: 0, zoom: 1 };
    this.lassoing = false;
    this.highlighted = null;
    this.budget = Infinity;
    this.paints = [];
    this.relight();
    this.#program();
    this.#listen();
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(canvas);
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault()); // it may come back
    canvas.addEventListener("webglcontextrestored", () => this.#restore());
  }

  close() {
    clearTimeout(this.resting);
    this.resizing.disconnect();
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  /** (N, 2) coordinates in [-1, 1], flat. */
  setPoints(coordinates) {
    this.points = coordinates;
    this.number = coordinates.length / 2;
    this.#shuffle();
    this.#fill("place", this.placeBuffer, coordinates, 2, this.gl.FLOAT, false);
    this.#index();
    this.draw();
  }

  /** (N, 4) bytes: red, green, blue, opacity; (N,) whether the pointer and the lasso find the point. */
  setColors(colors, reachable) {
    Object.assign(this, { colors, reachable });
    this.#fill("color", this.colorBuffer, colors, 4, this.gl.UNSIGNED_BYTE, true);
    this.canvas.dataset.colors = Number(this.canvas.dataset.colors ?? 0) + 1; // tests count them
    this.draw();
  }

  /** Take over the colours of the page. */
  relight() {
    this.paper = getComputedStyle(this.canvas).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
    this.draw();
  }

  /** Wait for the next picture. */
  painted() { return new Promise((resolve) => { this.paints.push(resolve); this.draw(); }); }

  reset() { this.view = { x: 0, y: 0, zoom: 1 }; this.draw(); }

  /** Zoom around a place of the canvas, its middle if none is given. */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const [before, view] = [this.toData(x, y), this.view];
    view.zoom = Math.max(0.7, Math.min(MAX_ZOOM, view.zoom * factor));
    const after = this.toData(x, y);
    view.x += before[0] - after[0];
    view.y += before[1] - after[1];
    this.#move();
  }

  /** Move by CSS pixels. */
  pan(dx, dy) {
    const unit = this.#unit();
    this.view.x -= dx / unit;
    this.view.y += dy / unit;
    this.#move();
  }

  /** Bring a point to the middle, near enough to see its neighbourhood. */
  goTo(image) {
    const zoom = Math.max(2.5, Math.min(20, Math.sqrt(this.number) / 11));
    this.view = { x: this.points[2 * image], y: this.points[2 * image + 1], zoom: Math.max(zoom, this.view.zoom) };
    this.highlighted = image;
    this.draw();
  }

  /** Draw with the next frame, however often it is asked for. */
  draw() { this.frame ??= requestAnimationFrame(() => { this.frame = null; this.#paint(); }); }

  /** Draw while something moves: as many points as this machine draws smoothly. */
  #move() {
    if (this.frame == null) {
      const now = performance.now();
      const gap = now - (this.lastMove ?? 0);
      this.lastMove = now;
      if (gap > SLOW && gap < REST) this.budget = Math.max(FEWEST, 0.7 * Math.min(this.budget, this.number));
      else if (gap < 0.75 * SLOW) this.budget = Math.min(this.number, 1.05 * this.budget);
    }
    clearTimeout(this.resting);
    this.moving = true;
    this.resting = setTimeout(() => { this.moving = false; this.draw(); }, REST);
    this.draw();
  }

  toData(x, y) {
    const unit = this.#unit();
    return [this.view.x + (x - this.width / 2) / unit, this.view.y - (y - this.height / 2) / unit];
  }

  toScreen(image) {
    const unit = this.#unit();
    return [
      this.width / 2 + (this.points[2 * image] - this.view.x) * unit,
      this.height / 2 - (this.points[2 * image + 1] - this.view.y) * unit,
    ];
  }

  /** The point nearest to a place, within `reach` CSS pixels; null if there is none. */
  pick(x, y, reach = 8) {
    if (!this.reachable) return null;
    const [[px, py], radius] = [this.toData(x, y), reach / this.#unit()];
    let [best, found] = [radius * radius, null];
    this.#inBox(px - radius, py - radius, px + radius, py + radius, (image) => {
      const [dx, dy] = [this.points[2 * image] - px, this.points[2 * image + 1] - py];
      if (dx * dx + dy * dy < best && this.reachable[image]) { best = dx * dx + dy * dy; found = image; }
    });
    return found;
  }

  /** The points inside a polygon of [x, y] in CSS pixels. */
  inside(polygon) {
    const corners = polygon.map(([x, y]) => this.toData(x, y));
    const [xs, ys] = [corners.map((c) => c[0]), corners.map((c) => c[1])];
    const found = [];
    this.#inBox(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (image) => {
      if (this.reachable[image] && contains(corners, this.points[2 * image], this.points[2 * image + 1])) found.push(image);
    });
    return found;
  }

  /** All points that can be seen and found. */
  inSight() { return this.inside([[0, 0], [this.width, 0], [this.width, this.height], [0, this.height]]); }

  // --- drawing ------------------------------------------------------------------------------------

  /** CSS pixels per unit of the data; the square [-1, 1] fills the canvas at zoom 1. */
  #unit() { return 0.47 * Math.min(this.width, this.height) * this.view.zoom; }
  get width() { return this.canvas.clientWidth; }
  get height() { return this.canvas.clientHeight; }

  #program() {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.program = program;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    this.uniforms = Object.fromEntries(["scale", "offset", "size"].map((name) => [name, gl.getUniformLocation(program, name)]));
    [this.placeBuffer, this.colorBuffer] = [gl.createBuffer(), gl.createBuffer()];
  }

  #fill(name, buffer, values, size, type, normalized) {
    const { gl } = this;
    const location = gl.getAttribLocation(this.program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, type, normalized, 0, 0);
  }

  /** A random order of drawing: no cluster lies above the others, and any part is a fair sample. */
  #shuffle() {
    const order = Uint32Array.from({ length: this.number }, (_, image) => image);
    for (let last = this.number - 1, state = 1; last > 0; last -= 1) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const other = state % (last + 1);
      [order[last], order[other]] = [order[other], order[last]];
    }
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, order, this.gl.STATIC_DRAW);
  }

  /** The graphics card forgot everything: tell it again. */
  #restore() {
    this.#program();
    if (this.points) this.setPoints(this.points);
    if (this.colors) this.setColors(this.colors, this.reachable);
  }

  #resize() {
    const ratio = Math.min(2, devicePixelRatio);
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.width = Math.max(1, Math.round(this.width * ratio));
      canvas.height = Math.max(1, Math.round(this.height * ratio));
    }
    this.overlay.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    this.draw();
  }

  /** Diameter of a point in CSS pixels: smaller the more there are, larger the nearer one looks. */
  #size() {
    const base = Math.max(2.4, Math.min(7, 380 / Math.sqrt(this.number)));
    return Math.min(14, base * this.view.zoom ** 0.45);
  }

  #paint() {
    const { gl, view, uniforms } = this;
    if (!this.points || !this.colors || !this.width || gl.isContextLost()) return;
    const [sx, sy] = [(2 * this.#unit()) / this.width, (2 * this.#unit()) / this.height];
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(...this.paper, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(uniforms.scale, sx, sy);
    gl.uniform2f(uniforms.offset, -view.x * sx, -view.y * sy);
    gl.uniform1f(uniforms.size, this.#size() * (this.canvas.width / this.width));
    const shown = this.moving ? Math.min(this.number, Math.floor(this.budget)) : this.number;
    gl.drawElements(gl.POINTS, shown, gl.UNSIGNED_INT, 0);
    this.#paintOverlay();
    this.canvas.dataset.view = [view.x, view.y, view.zoom].map((value) => value.toFixed(4)).join(" ");
    for (const resolve of this.paints.splice(0)) resolve();
  }

  #paintOverlay() {
    const needed = this.highlighted !== null || this.path?.length > 1;
    if (!needed && !this.inked) return; // touching it would cost as much as the points
    this.inked = needed;
    const context = this.overlay.getContext("2d");
    const ink = getComputedStyle(this.overlay);
    context.clearRect(0, 0, this.width, this.height);
    context.strokeStyle = ink.color;
    if (this.highlighted !== null) {
      const [x, y] = this.toScreen(this.highlighted);
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, this.#size() / 2 + 4, 0, 7);
      context.stroke();
    }
    if (this.path?.length > 1) {
      context.lineWidth = 1.5;
      context.setLineDash([5, 4]);
      context.beginPath();
      for (const [x, y] of this.path) context.lineTo(x, y);
      context.closePath();
      context.stroke();
      context.globalAlpha = 0.08;
      context.fillStyle = ink.color;
      context.fill();
      context.globalAlpha = 1;
      context.setLineDash([]);
    }
  }

  // --- finding points: an index of cells over the square ------------------------------------------

  #cell(value) { return Math.max(0, Math.min(CELLS - 1, Math.floor(((value + 1) / 2) * CELLS))); }

  #index() {
    const cells = new Uint32Array(this.number);
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    for (let image = 0; image < this.number; image += 1) {
      cells[image] = this.#cell(this.points[2 * image + 1]) * CELLS + this.#cell(this.points[2 * image]);
      this.starts[cells[image] + 1] += 1;
    }
    for (let cell = 0; cell < CELLS * CELLS; cell += 1) this.starts[cell + 1] += this.starts[cell];
    const next = this.starts.slice(0, -1);
    this.sorted = new Uint32Array(this.number);
    cells.forEach((cell, image) => { this.sorted[next[cell]++] = image; });
  }

  #inBox(left, bottom, right, top, visit) {
    for (let row = this.#cell(bottom); row <= this.#cell(top); row += 1) {
      const [from, to] = [this.starts[row * CELLS + this.#cell(left)], this.starts[row * CELLS + this.#cell(right) + 1]];
      for (let index = from; index < to; index += 1) visit(this.sorted[index]);
    }
  }

  // --- the pointer ----------------------------------------------------------------------------------

  #listen() {
    const at = (event) => { const box = this.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.pressed = this.last = at(event);
      this.moved = false;
      this.path = this.lassoing || event.shiftKey ? [at(event)] : null;
      this.onhover(null);
    });
    this.canvas.addEventListener("pointermove", (event) => this.#pointerMove(at(event)));
    this.canvas.addEventListener("pointerup", (event) => { if (event.button === 0 && this.pressed) this.#pointerUp(at(event)); });
    this.canvas.addEventListener("pointercancel", () => { this.path = this.pressed = null; this.draw(); });
    this.canvas.addEventListener("pointerleave", () => this.onhover(null));
    this.canvas.addEventListener("dblclick", (event) => this.zoom(2, ...at(event)));
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.onhover(null);
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...at(event));
    }, { passive: false });
  }

  #pointerMove([x, y]) {
    if (!this.pressed) return this.onhover(this.pick(x, y), x, y);
    this.moved ||= Math.hypot(x - this.pressed[0], y - this.pressed[1]) > 3;
    if (this.path) { this.path.push([x, y]); this.draw(); return; }
    if (this.moved) this.pan(x - this.last[0], y - this.last[1]);
    this.last = [x, y];
  }

  #pointerUp([x, y]) {
    const path = this.path;
    this.path = this.pressed = null;
    this.draw();
    if (path && this.moved) this.onlasso(this.inside(path));
    else if (!this.moved) { const image = this.pick(x, y); if (image !== null) this.onpick(image); }
  }
}

/** Point in polygon, by crossings of a ray. */
function contains(corners, x, y) {
  let inside = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i, i += 1) {
    const [[xi, yi], [xj, yj]] = [corners[i], corners[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}
