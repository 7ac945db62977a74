// The controls of one answer: which model, and how it is written. What is left empty is not sent.

const FIELDS = [
  { name: "max_tokens", text: "Length (tokens)", type: "number", min: 1, step: 1, shown: "max_new_tokens" },
  { name: "steps", text: "Steps", type: "number", min: 1, step: 1 },
  { name: "block_length", text: "Block", type: "number", min: 1, step: 1 },
  { name: "reveal", text: "Reveal first", type: "select", values: ["confidence", "margin", "entropy", "random", "left_to_right"] },
  { name: "threshold", text: "Threshold", type: "number", step: "any" },
  { name: "temperature", text: "Temperature", type: "number", min: 0, step: "any" },
  { name: "top_p", text: "Top p", type: "number", min: 0, max: 1, step: "any" },
  { name: "seed", text: "Seed", type: "number", min: 0, step: 1 },
  { name: "guidance", text: "Guidance", type: "number", min: 0, step: "any" },
];
const NOT_WHERE_TEXT_IS_GIVEN = ["max_tokens", "block_length"];

/** The settings of one side of the page. */
export class Settings {
  constructor(side, models) {
    this.models = models;
    this.inputs = {};
    this.element = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = side ? `Answer ${side}` : "Answer";
    this.element.append(legend, this.labelled("model", "Model", choice(models.map((model) => model.id))));
    for (const field of FIELDS) this.element.append(this.labelled(field.name, field.text, control(field)));
    this.inputs.model.addEventListener("change", () => this.showDefaults());
    this.showDefaults();
  }

  labelled(name, text, input) {
    const label = document.createElement("label");
    input.name = name;
    this.inputs[name] = input;
    label.append(text, input);
    return label;
  }

  get model() {
    return this.models.find((model) => model.id === this.inputs.model.value);
  }

  /** Show in grey what the checkpoint sets where nothing is given. */
  showDefaults() {
    for (const field of FIELDS) {
      const own = this.model.decoding[field.shown ?? field.name];
      if (field.type === "select") this.inputs[field.name].options[0].textContent = `${own}`;
      else this.inputs[field.name].placeholder = own === null || own === undefined ? "–" : `${own}`;
    }
  }

  /** Take over what another one has. */
  copy(other) {
    for (const [name, input] of Object.entries(this.inputs)) input.value = other.inputs[name].value;
    this.showDefaults();
  }

  /** The fields of a request that are given. Throws what is wrong with one. */
  fields(isInfill) {
    const said = { model: this.inputs.model.value };
    for (const { name, text, type } of FIELDS) {
      const input = this.inputs[name];
      if (!input.checkValidity()) throw new Error(`${text}: ${input.validationMessage}`);
      if (input.value === "" || (isInfill && NOT_WHERE_TEXT_IS_GIVEN.includes(name))) continue;
      said[name] = type === "number" ? Number(input.value) : input.value;
    }
    return said;
  }
}

function control(field) {
  if (field.type === "select") {
    const select = choice(field.values);
    const own = document.createElement("option");
    own.value = "";
    select.prepend(own);
    select.value = "";
    return select;
  }
  const input = document.createElement("input");
  Object.assign(input, { type: "number", step: field.step, inputMode: "decimal" });
  if (field.min !== undefined) input.min = field.min;
  if (field.max !== undefined) input.max = field.max;
  return input;
}

function choice(values) {
  const select = document.createElement("select");
  for (const value of values) select.add(new Option(value, value));
  return select;
}
