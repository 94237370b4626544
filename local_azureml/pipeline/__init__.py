"""The five steps of the registry's chat_completion_pipeline, each run as a process of its own."""

STEPS = {  # child job name -> what runs it, in order
    "ft_nlp_common_validation": "local_azureml.pipeline.validation:run",
    "chat_completion_model_import": "local_azureml.pipeline.model_import:run",
    "chat_completion_datapreprocess": "local_azureml.pipeline.preprocess:run",
    "chat_completion_finetune": "local_azureml.pipeline.finetune:run",
    "ft_nlp_model_converter": "local_azureml.pipeline.convert:run",
}
