// A canvas on the page: each token where it stands, masks as boxes, colours by how sure the model was.

const LEVELS = [0.5, 0.75, 0.9, 0.99];

/** One answer: what was told of its steps, and the drawing of one of them. Model text is only ever set as text. */
export class Canvas {
  constructor(element, ends) {
    this.element = element;
    this.ends = new Set(ends);
    this.steps = [];
    this.last = null;
    this.given = new Set();
  }

  /** Take an event of the stream and draw it. */
  take(canvas) {
    if (canvas.done) {
      this.last = canvas;
      this.drawStep(this.count() - 1);
    } else {
      if (!this.steps.length && !this.given.size) this.given = givenPlaces(canvas);
      this.steps.push(canvas);
      this.draw(canvas.tokens, canvas.confidence, canvas);
    }
  }

  /** How many pictures there are: one for each step that was told, or for each that wrote a token. */
  count() {
    return this.last ? Math.max(this.steps.length, 1) : this.steps.length;
  }

  /** Draw the canvas as it was after a step. */
  drawStep(number) {
    const step = this.steps[number];
    const isLast = this.last && number >= this.count() - 1;
    if (isLast) {
      this.draw(this.last.tokens, this.last.confidence, { new: [], replaced: [], block: [0, 0], ends: this.last.ends });
    } else if (step) {
      this.draw(step.tokens, step.confidence, step);
    }
  }

  draw(tokens, confidence, step) {
    const fresh = new Set(step.new);
    const replaced = new Set(step.replaced);
    const [begin, end] = step.block;
    const pieces = tokens.map((text, place) => {
      const piece = document.createElement("span");
      if (text === null) {
        piece.className = end > begin && place >= end ? "mask later" : "mask";
        return piece;
      }
      const isEnd = this.ends.has(text);
      piece.textContent = isEnd ? "◦" : text;
      const classes = [this.given.has(place) ? "given" : level(confidence[place]), isEnd ? "end" : ""];
      if (fresh.has(place)) classes.push(replaced.has(place) ? "replaced" : "new");
      if (step.ends !== undefined && place >= step.ends) classes.push("after");
      piece.className = classes.filter(Boolean).join(" ");
      const p = confidence[place];
      piece.title = [isEnd ? text : "", p === null || p === undefined ? "" : `p = ${p}`].filter(Boolean).join(", ");
      return piece;
    });
    this.element.replaceChildren(...pieces);
  }
}

function givenPlaces(canvas) {
  const fresh = new Set(canvas.new);
  return new Set([...canvas.tokens.keys()].filter((place) => canvas.tokens[place] !== null && !fresh.has(place)));
}

function level(p) {
  if (p === null || p === undefined) return "";
  return `p${LEVELS.filter((bound) => p >= bound).length}`;
}

/** Tokens, forwards and seconds of an answer in one line. */
export function told(canvas) {
  if (canvas.last) {
    const { forwards, seconds, ends, written_at } = canvas.last;
    const tokens = canvas.given.size ? written_at.filter((step) => step >= 0).length : ends;
    const each = forwards ? (tokens / forwards).toFixed(2) : "–";
    const rate = seconds ? Math.round(tokens / seconds) : "–";
    return `${tokens} tokens in ${forwards} steps: ${each} tokens a forward, ${rate} tokens a second, ${seconds.toFixed(2)} s`;
  }
  const step = canvas.steps.at(-1);
  if (!step) return "waiting …";
  const written = step.tokens.filter((text) => text !== null).length - canvas.given.size;
  return `step ${step.step + 1}: ${written} of ${step.tokens.length - canvas.given.size} tokens, ${(written / (step.step + 1)).toFixed(2)} a forward`;
}
