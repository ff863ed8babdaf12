// Responses, token by token: chosen by run, step, outcome and text; every text is put in as text.
"use strict";
const Inspector = (() => {
  const KINDS = {rewards: "reward", returns: "return", advantages: "advantage", logprobs: "log-probability"};
  const ADD_UP = new Set(["rewards", "logprobs"]); // a return and an advantage are sums to go already: steps have their mean
  const at = id => document.getElementById(id);
  const filters = ["run", "step", "outcome", "order", "colour", "search"];
  let groups = [], shown = [], current = "", chosen = new Set(), tip = null, pointed = null;

  function make(tag, attributes = {}, ...inner) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...inner);
    return node;
  }

  function unpack([scale, text]) { // 16-bit integers times a scale
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
    return Array.from({length: bytes.length / 2}, (_, i) => view.getInt16(2 * i, true) * scale);
  }

  const signed = x => (x < 0 ? "−" : "+") + (Math.abs(x) >= 0.001 || x === 0 ? Math.abs(x).toFixed(4) : Math.abs(x).toExponential(1));
  const sum = values => values.reduce((a, b) => a + b, 0);
  const right = r => r.outcome > 0.5;

  function read(data) {
    groups = [];
    for (const run of data.runs) for (const group of run.groups) {
      for (const r of group.responses) {
        if (r.values) continue;
        r.values = {};
        for (const kind of Object.keys(KINDS)) if (kind in r) r.values[kind] = unpack(r[kind]);
        r.text = r.tokens.join("");
      }
      const rewards = group.responses.flatMap(r => r.values.rewards || [0]);
      groups.push({
        ...group, run: run.name, key: `${run.name} ${group.step} ${group.group}`,
        mean: sum(group.responses.map(r => r.outcome)) / group.responses.length,
        largest: rewards.reduce((most, x) => Math.max(most, Math.abs(x)), 0),
        text: [group.prompt, group.answer, ...group.responses.map(r => r.text)].join("\n").toLowerCase(),
      });
    }
  }

  function options(select, pairs) {
    const before = select.value;
    if (!pairs.length) pairs = [["", "–"]];
    select.replaceChildren(...pairs.map(([value, text]) => make("option", {value}, text)));
    select.value = pairs.some(([value]) => value === before) ? before : pairs[0][0];
  }

  function fill(data) {
    const runs = data.runs.map(run => run.name);
    options(at("run"), [...(runs.length > 1 ? [["", "all"]] : []), ...runs.map(name => [name, name])]);
    const steps = [...new Set(groups.map(g => g.step))].sort((a, b) => a - b);
    options(at("step"), [["", "all"], ...steps.map(step => [String(step), String(step)])]);
    const kinds = Object.keys(KINDS).filter(kind => groups.some(g => g.responses.some(r => kind in r.values)));
    options(at("colour"), kinds.map(kind => [kind, KINDS[kind]]));
    at("left-out").textContent = data.left_out;
  }

  function choose() { // which groups, in which order
    const is = Object.fromEntries(filters.map(id => [id, at(id).value]));
    const word = is.search.trim().toLowerCase();
    const fits = {
      "": () => true, both: g => g.responses.some(right) && !g.responses.every(right),
      right: g => g.responses.some(right), wrong: g => !g.responses.every(right),
    }[is.outcome];
    const by = {
      step: (a, b) => a.step - b.step, late: (a, b) => b.step - a.step,
      hard: (a, b) => a.mean - b.mean, easy: (a, b) => b.mean - a.mean, largest: (a, b) => b.largest - a.largest,
    }[is.order];
    shown = groups.filter(g => (!is.run || g.run === is.run) && (!is.step || String(g.step) === is.step)
      && fits(g) && g.text.includes(word)).sort(by);
    at("count").textContent = `${shown.length} of ${groups.length} groups`;
    const several = new Set(groups.map(g => g.run)).size > 1;
    at("groups").replaceChildren(...shown.map(g => make("li", {}, make("button", {type: "button", "data-key": g.key},
      make("b", {}, `step ${g.step}, ${g.responses.filter(right).length} of ${g.responses.length} right`),
      make("span", {class: "tag"}, `${several ? g.run + " · " : ""}largest ${g.largest.toPrecision(2)}`),
      make("span", {class: "line"}, g.line)))));
    if (!shown.some(g => g.key === current)) { current = shown.length ? shown[0].key : ""; chosen = new Set(); }
    render();
  }

  function full(values) { // the strongest colour: the 99th percentile of sizes
    const sizes = values.map(Math.abs).sort((a, b) => a - b);
    return sizes[Math.ceil(0.99 * (sizes.length - 1))] || 1;
  }

  function tint(share) {
    const strength = (0.75 * Math.min(1, Math.abs(share))).toFixed(3);
    return share > 0 ? `rgba(37,99,235,${strength})` : `rgba(220,38,38,${strength})`;
  }

  function about(r, t) {
    return Object.entries(r.values).map(([kind, values]) => `${KINDS[kind]} ${signed(values[t])}`);
  }

  function name(token) {
    return token === "" ? "end" : token.replace(/\n/g, "⏎").replace(/^ /, "␣");
  }

  function found(text, tokens) { // tokens that are part of what is searched
    const word = at("search").value.trim().toLowerCase(), hits = new Set(), low = text.toLowerCase();
    if (!word || low.length !== text.length) return hits;
    const starts = [];
    tokens.reduce((sum, token) => { starts.push(sum); return sum + token.length; }, 0);
    for (let from = low.indexOf(word); from >= 0; from = low.indexOf(word, from + 1)) {
      starts.forEach((start, t) => { if (start < from + word.length && start + tokens[t].length > from) hits.add(t); });
    }
    return hits;
  }

  function stepsOf(r, kind) { // a line is a step
    const steps = [];
    let text = "", own = [];
    r.tokens.forEach((token, t) => {
      text += token; own.push(r.values[kind][t]);
      if (token.includes("\n") || t === r.tokens.length - 1) {
        if (steps.length && !text.trim()) { const last = steps.at(-1); last.text += text; last.own.push(...own); }
        else steps.push({text, own});
        text = ""; own = [];
      }
    });
    return steps.map(({text, own}) => ({text, value: ADD_UP.has(kind) ? sum(own) : sum(own) / own.length}));
  }

  function card(r, i, kind, largest) {
    const verdict = right(r) ? "right" : "wrong", hits = found(r.text, r.tokens);
    const list = make("div", {class: "tokens", role: "listbox", "aria-label": `Tokens of response ${i + 1}, ${verdict}. Arrow keys go from one to the next.`});
    r.tokens.forEach((token, t) => {
      const span = make("span", {role: "option", tabindex: t ? "-1" : "0", class: hits.has(t) ? "tok found" : "tok", "data-r": i, "data-t": t});
      span.setAttribute("aria-label", `${name(token)}: ${about(r, t).join(", ")}`);
      const [lines, ...more] = token.split("\n");
      span.append(token === "" ? make("span", {class: "end"}, "∎") : lines);
      for (const line of more) span.append(make("span", {class: "end"}, "⏎"), "\n" + line);
      span.style.background = tint(r.values[kind][t] / largest);
      list.append(span);
    });
    const steps = stepsOf(r, kind), longest = Math.max(...steps.map(s => Math.abs(s.value))) || 1;
    const body = make("tbody");
    steps.forEach((step, n) => {
      const bar = make("div"), width = 50 * Math.abs(step.value) / longest;
      bar.style.cssText = `margin-left:${step.value > 0 ? 50 : 50 - width}%;width:${width}%;background:${tint(Math.sign(step.value))}`;
      body.append(make("tr", {}, make("th", {scope: "row"}, String(n + 1)), make("td", {}, signed(step.value)), make("td", {class: "axis"}, bar), make("td", {}, step.text.trim())));
    });
    const head = make("thead", {}, make("tr", {}, ...["step", `${ADD_UP.has(kind) ? "sum of" : "mean"} ${KINDS[kind]}`, "", "text"].map(text => make("th", {scope: "col"}, text))));
    const score = r.values.rewards ? `, process reward ${signed(sum(r.values.rewards))}` : "";
    const facts = `outcome ${r.outcome}${r.reason && r.reason !== verdict ? ` (${r.reason})` : ""}${score}, ${r.tokens.length} tokens${r.truncated ? ", truncated" : ""}`;
    return make("article", {class: `card ${verdict}`, "aria-label": `Response ${i + 1}, ${verdict}`},
      make("h4", {}, `${i + 1} ${right(r) ? "✓" : "✗"} ${verdict}`), make("p", {class: "tag"}, facts), list,
      make("details", {open: ""}, make("summary", {}, "Steps"), make("table", {class: "steps"}, head, body)));
  }

  function render() {
    hide();
    const group = shown.find(g => g.key === current), kind = at("colour").value;
    for (const button of at("groups").querySelectorAll("button")) {
      if (button.dataset.key === current) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
    }
    if (!group) { at("group").replaceChildren(make("p", {}, groups.length ? "No group is like this." : "No samples yet.")); return; }
    const all = group.responses;
    if (!chosen.size) {
      for (const i of [all.findIndex(right), all.findIndex(r => !right(r))]) if (i >= 0) chosen.add(i);
      for (let i = 0; chosen.size < Math.min(2, all.length); i++) chosen.add(i);
    }
    const usable = all.every(r => kind in r.values) ? kind : "rewards" in all[0].values ? "rewards" : Object.keys(all[0].values)[0];
    const largest = full(all.flatMap(r => r.values[usable]));
    const picks = make("div", {class: "picks", role: "group", "aria-label": "Responses shown"}, ...all.map((r, i) =>
      make("button", {type: "button", "aria-pressed": String(chosen.has(i)), "data-pick": i}, `${i + 1} ${right(r) ? "✓ right" : "✗ wrong"}`)));
    const place = shown.indexOf(group);
    const walk = make("div", {class: "picks"},
      make("button", {type: "button", "data-walk": "-1", ...(place ? {} : {disabled: ""})}, "← previous"),
      make("button", {type: "button", "data-walk": "1", ...(place < shown.length - 1 ? {} : {disabled: ""})}, "next →"),
      make("span", {class: "tag"}, `group ${place + 1} of ${shown.length}`));
    const legend = make("p", {class: "tag"}, `${KINDS[usable]}: ${signed(-largest)} `, make("span", {class: "bar", role: "img", "aria-label": "from red over none to blue"}), ` ${signed(largest)} and beyond`);
    const cards = make("div", {class: "beside"}, ...[...chosen].sort((a, b) => right(all[b]) - right(all[a]) || a - b).map(i => card(all[i], i, usable, largest)));
    at("group").replaceChildren(walk,
      make("h3", {}, `Step ${group.step}${at("run").value || groups.every(g => g.run === group.run) ? "" : `, ${group.run}`}`),
      make("div", {class: "card"}, make("p", {class: "tag"}, `prompt${group.answer === null ? "" : `, answer ${group.answer}`}`), make("pre", {}, group.prompt)), picks, legend, cards);
  }

  function show(span) { // the numbers of a token
    const group = shown.find(g => g.key === current), r = group.responses[span.dataset.r], t = Number(span.dataset.t);
    hide();
    tip = make("div", {class: "tip", role: "tooltip"}, make("b", {}, name(r.tokens[t])), ...about(r, t).map(text => make("div", {}, text)));
    document.body.append(tip);
    pointed = span;
    place();
  }

  function place() { // the numbers at their token
    if (!tip) return;
    const box = pointed.getClientRects()[0] || pointed.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - own.width - 4))}px`;
    tip.style.top = `${box.top > own.height + 8 ? box.top - own.height - 6 : box.bottom + 6}px`;
  }

  function hide() { if (tip) tip.remove(); tip = null; }

  function listen() {
    const group = at("group"), token = event => event.target.closest && event.target.closest("[data-t]");
    for (const id of filters) at(id).addEventListener(id === "search" ? "input" : "change", choose);
    at("groups").addEventListener("click", event => {
      const button = event.target.closest("[data-key]");
      if (button) { current = button.dataset.key; chosen = new Set(); render(); }
    });
    group.addEventListener("click", event => {
      const pick = event.target.closest("[data-pick]"), walk = event.target.closest("[data-walk]");
      if (pick) {
        const i = Number(pick.dataset.pick);
        if (!chosen.has(i)) chosen.add(i); else if (chosen.size > 1) chosen.delete(i);
        render();
        group.querySelector(`[data-pick="${i}"]`).focus();
      } else if (walk) {
        const way = Number(walk.dataset.walk);
        current = shown[shown.findIndex(g => g.key === current) + way].key; chosen = new Set(); render();
        const same = group.querySelector(`[data-walk="${way}"]`);
        (same.disabled ? group.querySelector("[data-walk]:not([disabled])") : same).focus();
      }
    });
    group.addEventListener("mouseover", event => { const span = token(event); if (span) show(span); else hide(); });
    group.addEventListener("mouseleave", hide);
    group.addEventListener("focusin", event => { const span = token(event); if (span) show(span); });
    group.addEventListener("focusout", hide);
    document.addEventListener("scroll", place, true); // a focus scrolls too
    document.addEventListener("keydown", event => {
      if (event.key === "Escape") hide();
      const span = token(event);
      if (!span) return;
      const all = [...span.parentElement.children], t = all.indexOf(span);
      const to = {ArrowRight: t + 1, ArrowDown: t + 1, ArrowLeft: t - 1, ArrowUp: t - 1, Home: 0, End: all.length - 1}[event.key];
      if (to === undefined || !all[to]) return;
      event.preventDefault();
      span.tabIndex = -1;
      all[to].tabIndex = 0;
      all[to].focus();
    });
  }

  function load(data) { read(data); fill(data); choose(); }

  listen();
  load(JSON.parse(at("samples").textContent));
  return {load};
})();
