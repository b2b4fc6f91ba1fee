// The buttons are HTML, of which Gradio only hears what a script tells it.
element.addEventListener('click', event => {
  const button = event.target.closest('[data-example]');
  if (button) trigger('click', {number: Number(button.dataset.example)});
});
