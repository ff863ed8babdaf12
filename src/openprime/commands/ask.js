"use strict";
// Sends a question and shows what comes back, one JSON object a line. All texts become text nodes.
const names = JSON.parse(document.querySelector("main").dataset.panes);
const form = document.querySelector("#ask");
const box = document.querySelector("#question");
const stop = document.querySelector("#stop");

function make(tag, name, text = "", inside = null) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  inside?.append(made);
  return made;
}

const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4);

function colour(share) {
  const strength = 0.75 * Math.min(1, Math.abs(share));
  return `rgba(${share > 0 ? "37,99,235" : "220,38,38"},${strength.toFixed(3)})`;
}

class Pane {
  constructor(name, inside) {
    this.name = name;
    this.spans = [];
    this.pieces = [];
    this.steps = [];
    const card = make("section", "card", "", inside);
    make("h3", "", name.model, card);
    if (name.prm) make("div", "tag", `rewards of ${name.prm}`, card);
    this.state = make("div", "tag", "waits", card);
    this.state.setAttribute("role", "status");
    this.answer = make("pre", "tokens", "", card);
    this.answer.tabIndex = 0;
    this.answer.setAttribute("role", "group");
    this.answer.setAttribute("aria-label", "Answer. Left and right arrows go from token to token.");
    this.tail = make("span", "here", "", this.answer);
    this.readout = make("div", "readout", "", card);
    this.readout.setAttribute("aria-live", "polite");
    this.legend = make("div", "tag", "", card);
    this.sum = make("div", "sum", "", card);
    this.table = make("table", "steps", "", card);
    this.answer.onpointerover = this.answer.onclick = (event) => this.at(this.spans.indexOf(event.target.closest(".tok")));
    this.answer.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const place = { Home: 0, End: this.spans.length - 1 }[event.key];
      if (step === undefined && place === undefined) return;
      event.preventDefault();
      this.at(place ?? Math.max(0, Math.min(this.spans.length - 1, (this.now ?? (step > 0 ? -1 : 1)) + step)));
    };
  }

  at(place) {  // show a token's numbers
    if (place < 0 || place >= this.pieces.length) return;
    this.spans[this.now]?.classList.remove("now");
    this.now = place;
    this.spans[place].classList.add("now");
    const [text, reward, step] = this.pieces[place];
    this.readout.textContent =
      `token ${place + 1} of ${this.pieces.length} ${JSON.stringify(text)}  ${signed(reward)}  its step ${signed(this.steps[step][1])}`;
  }

  take(event) {
    this.done ||= event.done || event.error !== undefined;
    if (event.state !== undefined) this.state.textContent = event.state;
    if (event.text !== undefined) this.tail.append(event.text);
    if (event.error !== undefined) {
      this.state.textContent = event.error;
      this.state.classList.add("error");
    }
    if (event.pieces) {
      Object.assign(this, { pieces: event.pieces, steps: event.steps });
      this.tail.textContent = "";
      this.pieces.forEach(([text], place) => {
        const span = (this.spans[place] ??= make("span", "tok"));
        if (span.dataset.text === text) return;
        span.dataset.text = text;
        span.replaceChildren();
        text.split("\n").forEach((line, i) => {
          if (i) {
            make("span", "end", "⏎", span);
            span.append("\n");
          }
          span.append(line);
        });
        this.answer.insertBefore(span, this.tail);
      });
      this.sum.textContent =
        `reward ${signed(event.reward)}, probability of being right ${event.probability.toFixed(3)}`;
    }
  }

  end() {
    if (!this.done) this.take({ error: "broke off: the terminal says why" });
    this.tail.classList.remove("here");
  }

  draw(full) {  // `full`: the reward of the strongest colour
    if (!this.pieces.length) return;
    this.pieces.forEach(([, reward], place) => (this.spans[place].style.backgroundColor = colour(reward / full)));
    const longest = Math.max(...this.steps.map(([, reward]) => Math.abs(reward))) || 1;
    this.table.replaceChildren();
    for (const [text, reward] of this.steps) {
      const row = make("tr", "", "", this.table);
      make("td", "", signed(reward), row);
      const bar = make("div", "", "", make("td", "axis", "", row));
      const width = (50 * Math.abs(reward)) / longest;
      Object.assign(bar.style, {
        marginLeft: `${reward > 0 ? 50 : 50 - width}%`, width: `${width}%`, backgroundColor: colour(Math.sign(reward)),
      });
      make("td", "", text.trim(), row);
    }
    const most = full.toPrecision(2);
    this.legend.replaceChildren(`reward of a token −${most} `, make("span", "bar"), ` +${most} and beyond`);
  }
}

function draw(panes) {  // one PRM, one scale: the 99th percentile, for one outlier would make all others pale
  for (const pane of panes) {
    const alike = panes.filter((other) => other.name.prm === pane.name.prm);
    const sizes = alike.flatMap((other) => other.pieces.map(([, reward]) => Math.abs(reward))).sort((a, b) => a - b);
    pane.draw(sizes[Math.ceil(0.99 * (sizes.length - 1))] || 1);
  }
}

function post(path, value, signal) {
  return fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value), signal });
}

async function ask(question) {
  const article = document.createElement("article");
  make("h2", "", question, article);
  const beside = make("div", "beside", "", article);
  const panes = names.map((name) => new Pane(name, beside));
  document.querySelector("#asked").prepend(article);
  try {
    const reply = await post("ask", { question });
    if (!reply.ok) throw new Error(`refused (${reply.status})`);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part; !(part = await reader.read()).done; ) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      const events = lines.map((line) => JSON.parse(line));
      for (const event of events) for (const place of event.panes) panes[place].take(event);
      if (events.some((event) => event.pieces)) draw(panes);
    }
  } catch (error) {
    for (const pane of panes) pane.take({ error: `the connection broke: ${error.message}` });
  }
  for (const pane of panes) pane.end();
}

form.onsubmit = async (event) => {
  event.preventDefault();
  const question = box.value;
  if (form.dataset.busy || !question.trim()) return;
  form.dataset.busy = "yes";
  form.querySelector("button").disabled = true;
  stop.disabled = false;
  box.select();
  await ask(question);
  delete form.dataset.busy;
  form.querySelector("button").disabled = false;
  stop.disabled = true;
};
box.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
};
stop.onclick = () => post("stop", {});
document.onkeydown = (event) => {
  if (event.key === "Escape" && form.dataset.busy) post("stop", {});
};
