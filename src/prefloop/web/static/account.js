/* Links and invites carry their token behind the # of the address, which browsers keep to themselves. This puts it into
   the form, takes it out of the address and the history, and leaves the rest to the button. */

function takeToken() {
  const form = document.querySelector("form[data-token-from-address]");
  if (!form) return;
  const token = location.hash.slice(1);
  if (token) {
    form.elements.token.value = token;
    history.replaceState(null, "", location.pathname);
  }
  const has = form.elements.token.value !== "";
  form.querySelector("button").disabled = !has;
  document.querySelector("[data-without-token]").hidden = has;
}

takeToken();
addEventListener("hashchange", takeToken);
